/* A bare gRPC echo on libnghttp2: what one thread can do with HTTP/2, and so all the native transport can hope for.
 *
 * One thread, one epoll. A request's message is kept until its stream ends and then sent back as it came, between
 * ":status: 200, content-type: application/grpc" and "grpc-status: 0". Nothing is parsed, queued or computed.
 *
 * Cost: one recv and one send for all that a connection has at the time (nghttp2_wire.h), no copy but into and out of
 * nghttp2; streams are recycled. A slow peer costs one pass of answers and delays nobody.
 *
 * Loopback only, no TLS. It trusts its caller as far as a benchmark may: a message over 4 MiB resets its stream, a
 * breach of HTTP/2 closes the connection.
 *
 *     cc -O2 -o nghttp2_echo nghttp2_echo.c -lnghttp2 && ./nghttp2_echo READY_FILE
 *
 * writes {"grpc": "127.0.0.1:PORT"} to the file once it listens, and serves until it is ended by a signal.
 */
#define _GNU_SOURCE /* accept4 */
#include <arpa/inet.h>
#include <limits.h>

#include "nghttp2_wire.h"

enum {
  MAX_STREAMS = 1024,    /* of one connection */
  MAX_MESSAGE = 4 << 20, /* bytes of one request */
};

typedef struct Stream {
  struct Stream *next, *previous; /* in its connection, or `next` alone among the spare ones */
  Bytes message;                  /* the request, prefix and all, which is the answer too */
  size_t sent;
} Stream;

typedef struct {
  Wire wire;       /* first, since epoll tells wires */
  Stream *streams; /* the open ones: nghttp2 does not report them when a session is deleted */
} Connection;

static Stream *spare; /* closed streams, their buffers kept */

/* ---- Streams: nghttp2's callbacks ------------------------------------------------------------------------------- */

static void release(Connection *connection, Stream *stream) {
  if (stream->previous) stream->previous->next = stream->next;
  else connection->streams = stream->next;
  if (stream->next) stream->next->previous = stream->previous;
  stream->next = spare;
  spare = stream;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  Connection *connection = user;
  if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
  Stream *stream = spare;
  if (stream) spare = stream->next;
  else if (!(stream = calloc(1, sizeof *stream))) die("calloc");
  stream->message.size = stream->sent = 0;
  stream->previous = NULL;
  stream->next = connection->streams;
  if (stream->next) stream->next->previous = stream;
  connection->streams = stream;
  return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t size, void *user) {
  (void)flags, (void)user;
  Stream *stream = nghttp2_session_get_stream_user_data(session, id);
  if (!stream) return 0;
  if (size > MAX_MESSAGE - stream->message.size)
    return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
  append(&stream->message, data, size);
  return 0;
}

static const nghttp2_nv HEADERS[] = {HEADER(":status", "200"), HEADER("content-type", "application/grpc")};
static const nghttp2_nv TRAILERS[] = {HEADER("grpc-status", "0")};

/* Hands nghttp2 the next piece of an answer, and after the last one the trailers. */
static ssize_t give(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                    nghttp2_data_source *source, void *user) {
  (void)user;
  Stream *stream = source->ptr;
  ssize_t copied;
  if (copy_piece(stream->message.data, stream->message.size, &stream->sent, out, room, &copied)) {
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    if (nghttp2_submit_trailer(session, id, TRAILERS, 1)) return NGHTTP2_ERR_CALLBACK_FAILURE;
  }
  return copied;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  (void)user;
  if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) return 0;
  if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) return 0;
  Stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  if (!stream) return 0;
  nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = give};
  return nghttp2_submit_response(session, frame->hd.stream_id, HEADERS, 2, &provider);
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t error, void *user) {
  (void)error;
  Stream *stream = nghttp2_session_get_stream_user_data(session, id);
  if (stream) release(user, stream);
  return 0;
}

static nghttp2_session_callbacks *callbacks(void) {
  nghttp2_session_callbacks *made;
  if (nghttp2_session_callbacks_new(&made)) die("nghttp2");
  nghttp2_session_callbacks_set_on_begin_headers_callback(made, on_begin_headers);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(made, on_frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(made, on_close);
  return made;
}

/* ---- Connections ------------------------------------------------------------------------------------------------- */

static void drop(Connection *connection) {
  while (connection->streams) release(connection, connection->streams);
  wire_close(&connection->wire);
  free(connection);
}

static void welcome(int epoll, int listener, const nghttp2_session_callbacks *calls) {
  static const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MAX_STREAMS},
                                                    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW}};
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return; /* gone again, or no descriptors left: the others are served */
  Connection *connection = calloc(1, sizeof *connection);
  if (!connection) die("calloc");
  connection->wire.epoll = epoll;
  connection->wire.fd = fd;
  if (nghttp2_session_server_new(&connection->wire.session, calls, connection)) die("nghttp2");
  wire_open(&connection->wire, settings, 2);
  if (wire_flush(&connection->wire)) drop(connection);
}

/* ---- The program ------------------------------------------------------------------------------------------------- */

static int listen_on(struct sockaddr_in *address) {
  socklen_t size = sizeof *address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)address, size) || listen(fd, 1024) ||
      getsockname(fd, (struct sockaddr *)address, &size))
    die("listen");
  return fd;
}

/* Appears whole or not at all, since somebody is looking. */
static void write_ready(const char *path, unsigned port) {
  char draft[PATH_MAX];
  if (snprintf(draft, sizeof draft, "%s.new", path) >= (int)sizeof draft) errno = ENAMETOOLONG, die(path);
  FILE *file = fopen(draft, "w");
  if (!file || fprintf(file, "{\"grpc\": \"127.0.0.1:%u\"}\n", port) < 0 || fclose(file) || rename(draft, path))
    die(path);
}

int main(int count, char **words) {
  if (count != 2) {
    fprintf(stderr, "usage: nghttp2_echo READY_FILE\n");
    return 2;
  }
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int listener = listen_on(&address);
  nghttp2_session_callbacks *calls = callbacks();
  struct epoll_event ready[EVENTS] = {{.events = EPOLLIN, .data.ptr = NULL}}; /* NULL: the listener */
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, ready)) die("epoll");
  write_ready(words[1], ntohs(address.sin_port));
  for (;;) {
    int count_ready = epoll_wait(epoll, ready, EVENTS, -1);
    if (count_ready < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count_ready; i++) {
      Wire *wire = ready[i].data.ptr;
      if (!wire) welcome(epoll, listener, calls);
      else if (wire_pass(wire)) drop((Connection *)wire);
    }
  }
}
