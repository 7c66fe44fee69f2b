"""TLS for the native transport: OpenSSL over a non-blocking socket, without the GIL.

Rules: TLS 1.2 or 1.3, only ciphers that authenticate what they encrypt and keep the past secret, only HTTP/2 (ALPN h2);
no renegotiation, no compression, and no resumption, so that a server holds no state of clients that left and no key
that opens old sessions. A client without h2 is refused at its first message, before any signature is computed. With a
client CA every client must show a certificate of it. On the client's side (`TlsTrust`, which the load generator uses)
the rules are the same, and the server's certificate must be for the name that is expected.

OpenSSL keeps its errors in a queue of the thread, which Python's own ssl module reads too: the queue is emptied before
and after each call. It writes to sockets with write(2), which raises SIGPIPE where the peer is gone; Python ignores
that signal from its start, and so must whoever embeds this.
A handshake costs the server about 0.2 ms with an ECDSA key, reading or writing a small record 3 microseconds and one of
16 KiB 8, most of it the system's; a connection holds about 14 KB while nothing is under way.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython cimport final

from penstock.kernels._openssl cimport (
    OPENSSL_NPN_NEGOTIATED, OPENSSL_VERSION, SSL, SSL_AD_NO_APPLICATION_PROTOCOL, SSL_CLIENT_HELLO_ERROR,
    SSL_CLIENT_HELLO_SUCCESS, SSL_CTX, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN,
    SSL_FILETYPE_PEM, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_AUTO_RETRY, SSL_MODE_ENABLE_PARTIAL_WRITE,
    SSL_MODE_RELEASE_BUFFERS, SSL_OP_NO_COMPRESSION, SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_TICKET, SSL_SESS_CACHE_OFF,
    SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_OK, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_VERIFY_PEER, TLS1_2_VERSION,
    X509_NAMES, ERR_clear_error, ERR_peek_error, ERR_reason_error_string, OpenSSL_version, SSL_client_hello_get0_ext,
    SSL_CTX_check_private_key, SSL_CTX_clear_mode, SSL_CTX_free, SSL_CTX_get0_param, SSL_CTX_load_verify_locations,
    SSL_CTX_new, SSL_CTX_set_alpn_protos, SSL_CTX_set_alpn_select_cb, SSL_CTX_set_cipher_list,
    SSL_CTX_set_client_CA_list, SSL_CTX_set_client_hello_cb, SSL_CTX_set_default_passwd_cb,
    SSL_CTX_set_default_passwd_cb_userdata, SSL_CTX_set_default_verify_paths, SSL_CTX_set_min_proto_version,
    SSL_CTX_set_mode, SSL_CTX_set_num_tickets, SSL_CTX_set_options, SSL_CTX_set_session_cache_mode,
    SSL_CTX_set_verify, SSL_CTX_use_certificate_chain_file, SSL_CTX_use_PrivateKey_file, SSL_do_handshake, SSL_free,
    SSL_get0_alpn_selected, SSL_get_error, SSL_is_init_finished, SSL_load_client_CA_file, SSL_new, SSL_read_ex,
    SSL_select_next_proto, SSL_set_accept_state, SSL_set_connect_state, SSL_set_fd, SSL_set_tlsext_host_name,
    SSL_shutdown, SSL_write_ex, TLS_client_method, TLS_server_method, X509_VERIFY_PARAM, X509_VERIFY_PARAM_set1_host,
    X509_VERIFY_PARAM_set1_ip_asc, TLSEXT_TYPE_application_layer_protocol_negotiation,
)

from penstock.errors import PenstockError

# The codes of `TlsPeer`.
DONE, WANT_READ, WANT_WRITE = TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE
FAILED, AGAIN_READ, AGAIN_WRITE = TLS_FAILED, TLS_AGAIN_READ, TLS_AGAIN_WRITE

cdef const char* CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"     # of TLS 1.2; all of TLS 1.3 are of that kind
cdef const unsigned char* H2 = b"\x02h2"                     # as ALPN writes it: length, name


class TlsError(PenstockError):
    """A certificate, key or client CA that cannot be used."""


def openssl_version():
    """Version of the OpenSSL that this process runs on."""
    return OpenSSL_version(OPENSSL_VERSION).decode().split(" ")[1]


# ---------------------------------------------------------------------------------------------------------------------
# One connection
# ---------------------------------------------------------------------------------------------------------------------

cdef void* tls_new(void* context, int fd) noexcept nogil:
    """A connection to be, on the server's side of `fd`; NULL without memory. It keeps `context` alive by itself."""
    cdef SSL* tls
    ERR_clear_error()
    tls = SSL_new(<SSL_CTX*>context)
    if tls != NULL and SSL_set_fd(tls, fd) != 1:
        SSL_free(tls)
        tls = NULL
    if tls != NULL:
        SSL_set_accept_state(tls)
    ERR_clear_error()
    return tls


cdef void* tls_connect(void* context, int fd, const char* name) noexcept nogil:
    """The same on the client's side; a server of many names is told which one is wanted, unless that is empty."""
    cdef SSL* tls = <SSL*>tls_new(context, fd)
    if tls == NULL:
        return NULL
    SSL_set_connect_state(tls)
    if name[0] and SSL_set_tlsext_host_name(tls, name) != 1:
        SSL_free(tls)
        tls = NULL
    ERR_clear_error()
    return tls


cdef int tls_handshake(void* tls) noexcept nogil:
    """One step: TLS_DONE, TLS_WANT_READ or TLS_WANT_WRITE (call again then), or TLS_FAILED."""
    cdef int result, why
    ERR_clear_error()
    result = SSL_do_handshake(<SSL*>tls)
    if result == 1:
        return TLS_DONE if chose_h2(<SSL*>tls) else TLS_FAILED
    why = reason_of(<SSL*>tls, result)
    if why == SSL_ERROR_WANT_READ:
        return TLS_WANT_READ
    return TLS_WANT_WRITE if why == SSL_ERROR_WANT_WRITE else TLS_FAILED


cdef ssize_t tls_read(void* tls, void* data, size_t size) noexcept nogil:
    """Bytes read, of one record at most; 0: the peer said goodbye; TLS_AGAIN_READ, TLS_AGAIN_WRITE; -1: failed.

    An end without goodbye is a failure: somebody on the way may have cut the connection.
    """
    cdef size_t done = 0
    cdef int why
    if size == 0:
        return TLS_FAILED
    ERR_clear_error()
    if SSL_read_ex(<SSL*>tls, data, size, &done) == 1:
        return <ssize_t>done
    why = reason_of(<SSL*>tls, 0)
    return 0 if why == SSL_ERROR_ZERO_RETURN else again(why)


cdef ssize_t tls_write(void* tls, const void* data, size_t size) noexcept nogil:
    """Bytes written, often fewer than asked; TLS_AGAIN_READ, TLS_AGAIN_WRITE; -1: failed. Of no bytes none are sent."""
    cdef size_t done = 0
    if size == 0:
        return 0
    ERR_clear_error()
    if SSL_write_ex(<SSL*>tls, data, size, &done) == 1:
        return <ssize_t>done
    return again(reason_of(<SSL*>tls, 0))


cdef void tls_free(void* tls, bint say_goodbye) noexcept nogil:
    """Free the connection, with one close_notify if asked for and if the socket takes it at once. NULL is taken."""
    if tls == NULL:
        return
    ERR_clear_error()
    if say_goodbye and SSL_is_init_finished(<SSL*>tls):
        SSL_shutdown(<SSL*>tls)
    SSL_free(<SSL*>tls)
    ERR_clear_error()


cdef int reason_of(SSL* tls, int result) noexcept nogil:
    """Why a call did not succeed, one of SSL_ERROR_*. It looks at the error queue, which is emptied after."""
    cdef int why = SSL_get_error(tls, result)
    ERR_clear_error()
    return why


cdef ssize_t again(int why) noexcept nogil:
    """What remains but waiting and failing: SSL_ERROR_SYSCALL and SSL_ERROR_SSL both end the connection."""
    if why == SSL_ERROR_WANT_READ:
        return TLS_AGAIN_READ
    return TLS_AGAIN_WRITE if why == SSL_ERROR_WANT_WRITE else TLS_FAILED


# ---------------------------------------------------------------------------------------------------------------------
# HTTP/2 only
# ---------------------------------------------------------------------------------------------------------------------

cdef int check_hello(SSL* tls, int* alert, void* data) noexcept nogil:
    """Refuse a client that names no protocol at all; the callback below is not asked then."""
    cdef const unsigned char* names = NULL
    cdef size_t size = 0
    if SSL_client_hello_get0_ext(tls, TLSEXT_TYPE_application_layer_protocol_negotiation, &names, &size) == 1:
        return SSL_CLIENT_HELLO_SUCCESS
    alert[0] = SSL_AD_NO_APPLICATION_PROTOCOL
    return SSL_CLIENT_HELLO_ERROR


cdef int choose_h2(SSL* tls, const unsigned char** chosen, unsigned char* chosen_size, const unsigned char* offered,
                   unsigned int size, void* data) noexcept nogil:
    """Choose h2, or end the handshake with the alert no_application_protocol."""
    if SSL_select_next_proto(<unsigned char**>chosen, chosen_size, H2, 3, offered, size) == OPENSSL_NPN_NEGOTIATED:
        return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef bint chose_h2(const SSL* tls) noexcept nogil:
    """Whether the finished handshake really agreed on h2, whatever the callbacks were asked."""
    cdef const unsigned char* name = NULL
    cdef unsigned int size = 0
    SSL_get0_alpn_selected(tls, &name, &size)
    return size == 2 and name[0] == H2[1] and name[1] == H2[2]


# ---------------------------------------------------------------------------------------------------------------------
# What connections share
# ---------------------------------------------------------------------------------------------------------------------

cdef int give_no_passphrase(char* buffer, int size, int writing, void* asked) noexcept nogil:
    """In place of OpenSSL's own question at the terminal: note that it was asked, and fail."""
    if asked != NULL:
        (<bint*>asked)[0] = True
    return -1


@final
cdef class TlsContext:
    def __cinit__(self, str certificate not None, str key not None, str client_ca not None=""):
        ERR_clear_error()
        self.context = SSL_CTX_new(TLS_server_method())
        try:
            if self.context == NULL or not restrict(<SSL_CTX*>self.context):
                raise TlsError(f"OpenSSL cannot be set up: {explain()}")
            load_key(<SSL_CTX*>self.context, key)
            load_certificate(<SSL_CTX*>self.context, certificate, key)
            if client_ca:
                load_client_ca(<SSL_CTX*>self.context, client_ca)
        finally:
            ERR_clear_error()

    def __dealloc__(self):
        SSL_CTX_free(<SSL_CTX*>self.context)


@final
cdef class TlsTrust:
    def __cinit__(self, str name not None, str ca not None="", str certificate not None="", str key not None=""):
        ERR_clear_error()
        self.context = SSL_CTX_new(TLS_client_method())
        try:
            if self.context == NULL or not restrict(<SSL_CTX*>self.context):
                raise TlsError(f"OpenSSL cannot be set up: {explain()}")
            if SSL_CTX_set_alpn_protos(<SSL_CTX*>self.context, H2, 3) != 0:
                raise MemoryError
            trust(<SSL_CTX*>self.context, ca)
            self.name = expect(<SSL_CTX*>self.context, name.encode())
            if certificate:
                load_key(<SSL_CTX*>self.context, key)
                load_certificate(<SSL_CTX*>self.context, certificate, key)
        finally:
            ERR_clear_error()

    def __dealloc__(self):
        SSL_CTX_free(<SSL_CTX*>self.context)


cdef trust(SSL_CTX* context, str ca):
    """Servers must show a certificate that leads to one of these, or to one that the system trusts."""
    cdef bytes path = readable("TLS CA", ca) if ca else b""
    if ca and SSL_CTX_load_verify_locations(context, PyBytes_AS_STRING(path), NULL) != 1:
        raise TlsError(f"the TLS CA {ca} holds no certificate in PEM format that can be used ({explain()})")
    if not ca and SSL_CTX_set_default_verify_paths(context) != 1:
        raise TlsError(f"the system's CA certificates cannot be read: {explain()}")
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL)


cdef bytes expect(SSL_CTX* context, bytes name):
    """The certificate must be for this name or address; what is left of it to ask the server for."""
    cdef X509_VERIFY_PARAM* checks = SSL_CTX_get0_param(context)
    if X509_VERIFY_PARAM_set1_ip_asc(checks, PyBytes_AS_STRING(name)) == 1:
        return b""
    if not name or X509_VERIFY_PARAM_set1_host(checks, PyBytes_AS_STRING(name), len(name)) != 1:
        raise TlsError(f"no server can be called {name!r}")
    return name


cdef bint restrict(SSL_CTX* context) noexcept nogil:
    """The rules at the head of this file; whether OpenSSL knows them all."""
    SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET)
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
    SSL_CTX_set_mode(
        context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS
    )
    SSL_CTX_clear_mode(context, SSL_MODE_AUTO_RETRY)     # else one read works for as long as a peer sends empty records
    SSL_CTX_set_client_hello_cb(context, check_hello, NULL)
    SSL_CTX_set_alpn_select_cb(context, choose_h2, NULL)
    SSL_CTX_set_default_passwd_cb(context, give_no_passphrase)
    return (
        SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1
        and SSL_CTX_set_cipher_list(context, CIPHERS) == 1
        and SSL_CTX_set_num_tickets(context, 0) == 1     # TLS 1.3 has tickets of its own
    )


cdef load_key(SSL_CTX* context, str path):
    cdef bint asked = False
    cdef bytes name = readable("TLS key", path)
    cdef int good
    SSL_CTX_set_default_passwd_cb_userdata(context, &asked)
    good = SSL_CTX_use_PrivateKey_file(context, PyBytes_AS_STRING(name), SSL_FILETYPE_PEM)
    SSL_CTX_set_default_passwd_cb_userdata(context, NULL)
    if asked:
        raise TlsError(f"the TLS key {path} is encrypted; give one without a passphrase, readable by the server only")
    if good != 1:
        raise TlsError(f"the TLS key {path} holds no private key in PEM format ({explain()})")


cdef load_certificate(SSL_CTX* context, str path, str key):
    """The server's certificate and those between it and its CA. A key loaded before that does not fit is dropped."""
    cdef bytes name = readable("TLS certificate", path)
    if SSL_CTX_use_certificate_chain_file(context, PyBytes_AS_STRING(name)) != 1:
        raise TlsError(f"the TLS certificate {path} holds no certificate in PEM format that can be used ({explain()})")
    if SSL_CTX_check_private_key(context) != 1:
        raise TlsError(f"the TLS key {key} is not the key of the certificate {path}")


cdef load_client_ca(SSL_CTX* context, str path):
    """Ask clients for a certificate that leads to one of these, and tell them which these are."""
    cdef bytes name = readable("TLS client CA", path)
    cdef X509_NAMES* names = NULL
    if SSL_CTX_load_verify_locations(context, PyBytes_AS_STRING(name), NULL) == 1:
        names = SSL_load_client_CA_file(PyBytes_AS_STRING(name))
    if names == NULL:
        raise TlsError(f"the TLS client CA {path} holds no certificate in PEM format that can be used ({explain()})")
    SSL_CTX_set_client_CA_list(context, names)
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL)


cdef bytes readable(str what, str path):
    """The path as OpenSSL takes it, once Python could open it: its words for what the system refuses are plain."""
    try:
        with open(path, "rb"):
            return os.fsencode(path)
    except OSError as error:
        raise TlsError(f"the {what} {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise TlsError(f"the {what} {path!r} cannot be read: {error}") from None


cdef str explain():
    """OpenSSL's first complaint; the later ones only say where it passed through."""
    cdef const char* text = ERR_reason_error_string(ERR_peek_error())
    return "no reason given" if text == NULL else text.decode()


# ---------------------------------------------------------------------------------------------------------------------
# For tests
# ---------------------------------------------------------------------------------------------------------------------

@final
cdef class TlsPeer:
    def __cinit__(self, TlsContext context not None, int fd):
        self.tls = tls_new(context.context, fd)
        if self.tls == NULL:
            raise MemoryError

    def __dealloc__(self):
        tls_free(self.tls, False)

    def handshake(self):
        return tls_handshake(self.open())

    def read(self, size_t size):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        cdef ssize_t done = tls_read(self.open(), PyBytes_AS_STRING(data), size)
        return data[:done] if done >= 0 else done

    def write(self, const unsigned char[::1] data not None):
        return tls_write(self.open(), &data[0], data.shape[0]) if data.shape[0] else 0

    def close(self, bint say_goodbye=True):
        tls_free(self.tls, say_goodbye)
        self.tls = NULL

    cdef void* open(self) except NULL:
        if self.tls == NULL:
            raise ValueError("the connection is closed")
        return self.tls
