"""What Penstock calls of OpenSSL 1.1.1 or 3.x, as its manual pages (man 3 SSL_CTX_new and so on) describe it."""

cdef extern from "openssl/crypto.h" nogil:
    int OPENSSL_VERSION
    const char* OpenSSL_version(int what)

cdef extern from "openssl/err.h" nogil:
    unsigned long ERR_peek_error()
    const char* ERR_reason_error_string(unsigned long error)
    void ERR_clear_error()

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL:
        pass
    ctypedef struct X509_NAMES "STACK_OF(X509_NAME)":
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass

    int SSL_FILETYPE_PEM
    int SSL_SESS_CACHE_OFF
    int TLS1_2_VERSION
    int SSL_VERIFY_PEER
    int SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    long SSL_MODE_ENABLE_PARTIAL_WRITE
    long SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    long SSL_MODE_RELEASE_BUFFERS
    long SSL_MODE_AUTO_RETRY
    unsigned long SSL_OP_NO_COMPRESSION
    unsigned long SSL_OP_NO_RENEGOTIATION
    unsigned long SSL_OP_NO_TICKET
    unsigned int TLSEXT_TYPE_application_layer_protocol_negotiation
    int SSL_AD_NO_APPLICATION_PROTOCOL
    int SSL_CLIENT_HELLO_SUCCESS
    int SSL_CLIENT_HELLO_ERROR
    int SSL_TLSEXT_ERR_OK
    int SSL_TLSEXT_ERR_ALERT_FATAL
    int OPENSSL_NPN_NEGOTIATED
    int SSL_ERROR_WANT_READ
    int SSL_ERROR_WANT_WRITE
    int SSL_ERROR_ZERO_RETURN

    ctypedef int (*passphrase_function)(char* buffer, int size, int writing, void* data) noexcept nogil
    ctypedef int (*hello_function)(SSL* tls, int* alert, void* data) noexcept nogil
    ctypedef int (*alpn_function)(SSL* tls, const unsigned char** chosen, unsigned char* chosen_size,
                                  const unsigned char* offered, unsigned int size, void* data) noexcept nogil
    ctypedef int (*verify_function)(int good, void* store) noexcept nogil

    const SSL_METHOD* TLS_server_method()
    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    void SSL_CTX_free(SSL_CTX* context)
    int SSL_CTX_set_min_proto_version(SSL_CTX* context, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX* context, const char* ciphers)
    unsigned long SSL_CTX_set_options(SSL_CTX* context, unsigned long options)
    long SSL_CTX_set_mode(SSL_CTX* context, long mode)
    long SSL_CTX_clear_mode(SSL_CTX* context, long mode)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* context, long mode)
    int SSL_CTX_set_num_tickets(SSL_CTX* context, size_t count)
    void SSL_CTX_set_client_hello_cb(SSL_CTX* context, hello_function callback, void* data)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX* context, alpn_function callback, void* data)
    void SSL_CTX_set_default_passwd_cb(SSL_CTX* context, passphrase_function callback)
    void SSL_CTX_set_default_passwd_cb_userdata(SSL_CTX* context, void* data)
    int SSL_CTX_use_PrivateKey_file(SSL_CTX* context, const char* path, int kind)
    int SSL_CTX_use_certificate_chain_file(SSL_CTX* context, const char* path)
    int SSL_CTX_check_private_key(const SSL_CTX* context)
    int SSL_CTX_set_default_verify_paths(SSL_CTX* context)
    int SSL_CTX_set_alpn_protos(SSL_CTX* context, const unsigned char* names, unsigned int size)
    X509_VERIFY_PARAM* SSL_CTX_get0_param(SSL_CTX* context)
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM* checks, const char* name, size_t size)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM* checks, const char* address)
    int SSL_CTX_load_verify_locations(SSL_CTX* context, const char* file, const char* folder)
    X509_NAMES* SSL_load_client_CA_file(const char* path)
    void SSL_CTX_set_client_CA_list(SSL_CTX* context, X509_NAMES* names)
    void SSL_CTX_set_verify(SSL_CTX* context, int mode, verify_function callback)

    SSL* SSL_new(SSL_CTX* context)
    void SSL_free(SSL* tls)
    int SSL_set_fd(SSL* tls, int fd)
    void SSL_set_accept_state(SSL* tls)
    void SSL_set_connect_state(SSL* tls)
    int SSL_set_tlsext_host_name(SSL* tls, const char* name)
    int SSL_do_handshake(SSL* tls)
    int SSL_is_init_finished(const SSL* tls)
    int SSL_read_ex(SSL* tls, void* data, size_t size, size_t* done)
    int SSL_write_ex(SSL* tls, const void* data, size_t size, size_t* done)
    int SSL_shutdown(SSL* tls)
    int SSL_get_error(const SSL* tls, int result)
    int SSL_client_hello_get0_ext(SSL* tls, unsigned int kind, const unsigned char** data, size_t* size)
    int SSL_select_next_proto(unsigned char** chosen, unsigned char* chosen_size, const unsigned char* ours,
                              unsigned int our_size, const unsigned char* theirs, unsigned int their_size)
    void SSL_get0_alpn_selected(const SSL* tls, const unsigned char** name, unsigned int* size)
