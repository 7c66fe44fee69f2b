"""What the native transport uses of sockets and epoll. None of these calls blocks but `epoll_wait`."""

from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <unistd.h>

    /* A connection that waits, or -errno. */
    static int socket_accept(int listener) {
        int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return -errno;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  /* fails on Unix sockets, which need none */
        return fd;
    }
    /* Bytes read, 0 where the peer is done, or -errno; likewise below. */
    static ssize_t socket_read(int fd, void *data, size_t size) {
        ssize_t got = recv(fd, data, size, 0);
        return got < 0 ? -errno : got;
    }
    static ssize_t socket_write(int fd, const void *data, size_t size) {
        ssize_t put = send(fd, data, size, MSG_NOSIGNAL);
        return put < 0 ? -errno : put;
    }
    /* The peer's address as gRPC writes it. */
    static void socket_peer(int fd, char *out, size_t size) {
        struct sockaddr_storage address;
        socklen_t length = sizeof address;
        char host[INET6_ADDRSTRLEN] = "";
        snprintf(out, size, "unix:");
        if (getpeername(fd, (struct sockaddr *)&address, &length)) return;
        if (address.ss_family == AF_INET) {
            struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
            inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
            snprintf(out, size, "ipv4:%s:%d", host, ntohs(v4->sin_port));
        } else if (address.ss_family == AF_INET6) {
            struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
            inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
            snprintf(out, size, "ipv6:[%s]:%d", host, ntohs(v6->sin6_port));
        }
    }
    static int would_block(ssize_t result) { return result == -EAGAIN || result == -EWOULDBLOCK || result == -EINTR; }
    static int out_of_descriptors(int result) {
        return result == -EMFILE || result == -ENFILE || result == -ENOBUFS || result == -ENOMEM;
    }
    static int poll_new(void) { return epoll_create1(EPOLL_CLOEXEC); }
    static int poll_set(int poll, int operation, int fd, uint32_t events, void *tag) {
        struct epoll_event event = {.events = events, .data.ptr = tag};
        return epoll_ctl(poll, operation, fd, &event);
    }
    static int poll_wait(int poll, struct epoll_event *events, int most, int timeout_ms) {
        int found = epoll_wait(poll, events, most, timeout_ms);
        return found < 0 ? 0 : found;
    }
    """
    cdef struct epoll_data:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
        SHUT_WR
    int socket_accept(int listener) nogil
    ssize_t socket_read(int fd, void* data, size_t size) nogil
    ssize_t socket_write(int fd, const void* data, size_t size) nogil
    void socket_peer(int fd, char* out, size_t size) nogil
    bint would_block(ssize_t result) nogil
    bint out_of_descriptors(int result) nogil
    int poll_new() nogil
    int poll_set(int poll, int operation, int fd, uint32_t events, void* tag) nogil
    int poll_wait(int poll, epoll_event* events, int most, int timeout_ms) nogil
    int shutdown(int fd, int how) nogil
