"""What a client uses beyond what servers do: sockets that connect, an alarm clock for epoll, nghttp2's client side.

None of these calls blocks.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from penstock.kernels._nghttp2 cimport (
    nghttp2_data_provider, nghttp2_nv, nghttp2_option, nghttp2_session, nghttp2_session_callbacks,
)

cdef extern from "<nghttp2/nghttp2.h>" nogil:
    enum:
        NGHTTP2_SETTINGS_ENABLE_PUSH
    int nghttp2_session_client_new2(nghttp2_session** session, const nghttp2_session_callbacks* callbacks,
                                    void* user_data, const nghttp2_option* option)
    int32_t nghttp2_submit_request(nghttp2_session* session, const void* priority, const nghttp2_nv* fields,
                                   size_t count, const nghttp2_data_provider* provider, void* stream_user_data)
    const char* nghttp2_strerror(int code)

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/timerfd.h>
    #include <sys/un.h>
    #include <unistd.h>

    /* A connection under way to a numeric address, or where `port` is 0 to the path of a Unix socket: its descriptor,
       or -errno. Whether it came about, the first read tells. */
    static int socket_connect(const char *host, int port) {
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)port)};
        struct sockaddr_un path = {.sun_family = AF_UNIX};
        struct sockaddr *to = (struct sockaddr *)&path;
        socklen_t size = sizeof path;
        int one = 1, fd;
        if (port && inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
            to = (struct sockaddr *)&v4;
            size = sizeof v4;
        } else if (port && inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
            to = (struct sockaddr *)&v6;
            size = sizeof v6;
        } else {
            if (port || strlen(host) >= sizeof path.sun_path) return -EINVAL;
            strcpy(path.sun_path, host);
        }
        fd = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) return -errno;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, to, size) && errno != EINPROGRESS) {
            int why = errno;
            close(fd);
            return -why;
        }
        return fd;
    }
    static int alarm_new(void) { return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC); }
    /* Make the descriptor readable at a CLOCK_MONOTONIC time in nanoseconds, to within about 50 microseconds. */
    static void alarm_set(int fd, long long at) {
        struct itimerspec when = {.it_value = {at / 1000000000, at % 1000000000}};
        timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
    }
    static int highest_bit(unsigned long long value) { return 63 - __builtin_clzll(value); }
    static void count_more(uint64_t *counter, uint64_t more) {
        __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + more, __ATOMIC_RELAXED);
    }
    """
    enum:
        EPOLLET
    int socket_connect(const char* host, int port) nogil
    int alarm_new() nogil
    void alarm_set(int fd, int64_t at) nogil
    int highest_bit(uint64_t value) nogil
    void count_more(uint64_t* counter, uint64_t more) nogil   # of one that a single thread writes
    const char* strerror(int error) nogil
