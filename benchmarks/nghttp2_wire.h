/* What lies under the echo: a non-blocking socket under an nghttp2 session, in one thread's epoll.
 *
 * One pass over a wire is one recv of up to 256 KiB and one send of everything that came of it. What the peer does not
 * take is kept, and until it is taken nothing more is read from that peer. Running out of memory ends the process.
 */
#ifndef NGHTTP2_WIRE_H
#define NGHTTP2_WIRE_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
  STREAM_WINDOW = 1 << 20, /* flow control; wide, so that WINDOW_UPDATEs are few */
  CONNECTION_WINDOW = 16 << 20,
  READ_SIZE = 256 << 10,
  EVENTS = 64,
};

/* A header as nghttp2 wants it, of two literals, which are not copied. */
#define HEADER(name, value)                                                    \
  {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1, \
   NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE}

/* Bytes that grow. */
typedef struct {
  uint8_t *data;
  size_t size, capacity;
} Bytes;

typedef struct {
  int epoll, fd;
  int waits; /* for EPOLLOUT, with `unsent` */
  nghttp2_session *session;
  Bytes unsent; /* what the peer has not taken yet, from `taken` on */
  size_t taken;
} Wire;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void append(Bytes *bytes, const uint8_t *data, size_t size) {
  if (size > bytes->capacity - bytes->size) {
    size_t capacity = bytes->capacity ? bytes->capacity : 512;
    while (capacity - bytes->size < size) capacity *= 2;
    if (!(bytes->data = realloc(bytes->data, capacity))) die("realloc");
    bytes->capacity = capacity;
  }
  if (size) memcpy(bytes->data + bytes->size, data, size);
  bytes->size += size;
}

/* Copies the next piece of `bytes` for an nghttp2 data source; whether it was the last. */
static int copy_piece(const uint8_t *bytes, size_t size, size_t *sent, uint8_t *out, size_t room, ssize_t *copied) {
  size_t left = size - *sent, piece = left < room ? left : room;
  if (piece) memcpy(out, bytes + *sent, piece);
  *sent += piece;
  *copied = (ssize_t)piece;
  return piece == left;
}

static void wire_watch(Wire *wire, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = wire};
  if (epoll_ctl(wire->epoll, operation, wire->fd, &event)) die("epoll_ctl");
}

/* Starts on a connected, non-blocking socket whose session is made: announces `settings` and wide windows. */
static void wire_open(Wire *wire, const nghttp2_settings_entry *settings, size_t count) {
  int one = 1;
  setsockopt(wire->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (nghttp2_submit_settings(wire->session, NGHTTP2_FLAG_NONE, settings, count) ||
      nghttp2_session_set_local_window_size(wire->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW))
    die("nghttp2");
  wire_watch(wire, EPOLL_CTL_ADD, EPOLLIN);
}

static void wire_close(Wire *wire) {
  nghttp2_session_del(wire->session);
  close(wire->fd); /* which takes it out of epoll */
  free(wire->unsent.data);
}

/* Sends `bytes` as far as the peer takes them; how many that were, or -1. */
static ssize_t wire_send(const Wire *wire, const uint8_t *bytes, size_t size) {
  size_t done = 0;
  while (done < size) {
    ssize_t sent = send(wire->fd, bytes + done, size - done, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? (ssize_t)done : -1;
    done += (size_t)sent;
  }
  return (ssize_t)done;
}

/* Collects every frame the session wants to send and sends them at once. -1: the connection is lost. */
static int wire_flush(Wire *wire) {
  static Bytes frames;
  const uint8_t *frame;
  ssize_t size;
  frames.size = 0;
  while ((size = nghttp2_session_mem_send(wire->session, &frame)) > 0) append(&frames, frame, (size_t)size);
  if (size < 0) return -1;
  ssize_t sent = wire_send(wire, frames.data, frames.size);
  if (sent < 0) return -1;
  if ((size_t)sent == frames.size) return 0;
  append(&wire->unsent, frames.data + sent, frames.size - (size_t)sent);
  wire->waits = 1;
  wire_watch(wire, EPOLL_CTL_MOD, EPOLLOUT);
  return 0;
}

/* Sends what could not be sent before; once that is done, reads again. */
static int wire_resume(Wire *wire) {
  ssize_t sent = wire_send(wire, wire->unsent.data + wire->taken, wire->unsent.size - wire->taken);
  if (sent < 0) return -1;
  wire->taken += (size_t)sent;
  if (wire->taken < wire->unsent.size) return 0;
  wire->unsent.size = wire->taken = 0;
  wire->waits = 0;
  wire_watch(wire, EPOLL_CTL_MOD, EPOLLIN);
  return wire_flush(wire);
}

/* One pass, when epoll reports the wire: read, let the session's callbacks work, send. -1: the connection is over. */
static int wire_pass(Wire *wire) {
  static uint8_t buffer[READ_SIZE];
  if (wire->waits) return wire_resume(wire);
  ssize_t size = recv(wire->fd, buffer, sizeof buffer, 0);
  if (size < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
  if (size == 0 || nghttp2_session_mem_recv(wire->session, buffer, (size_t)size) < 0 || wire_flush(wire)) return -1;
  int over = !nghttp2_session_want_read(wire->session) && !nghttp2_session_want_write(wire->session);
  return over && !wire->waits ? -1 : 0;
}

#endif
