/* Closed-loop load on one gRPC method, as h2load does it, but with bodies that differ from request to request.
 *
 * h2load sends one body for ever. Rows that repeat flatter trees, and entities that repeat flatter look-ups, so here
 * each request takes the next body of a pool. Each must be answered by HTTP 200 and grpc-status 0, else the run fails.
 * One thread; 1 to 2 µs of CPU a request, a little less than h2load.
 *
 *     cc -O2 -o nghttp2_load nghttp2_load.c -lnghttp2
 *     ./nghttp2_load PORT PATH CONNECTIONS STREAMS REQUESTS BODIES
 *
 * BODIES is a file of gRPC messages one after the other, each with its prefix of five bytes. Prints
 * {"requests": N, "seconds": S, "p50_us": L}: from the first request to the last answer, connecting left out.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <time.h>

#include "nghttp2_wire.h"

typedef struct {
  const uint8_t *data;
  size_t size;
} Body;

typedef struct {
  const Body *body;
  size_t sent;
  double start;
  int http_ok, grpc_ok;
} Call;

static Body *bodies;
static size_t body_count;
static nghttp2_nv headers[] = {
    HEADER(":method", "POST"),    HEADER(":scheme", "http"),
    HEADER(":authority", "load"), HEADER(":path", ""), /* set by main */
    HEADER("te", "trailers"),     HEADER("content-type", "application/grpc"),
};
enum { PATH_AT = 3, PATIENCE_MS = 30000, HEADER_COUNT = sizeof headers / sizeof *headers };
static size_t wanted, started, answered;
static float *latencies;    /* µs */
static char message[512];   /* what the server last said of a call that failed */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void fail(const char *what) {
  fprintf(stderr, "nghttp2_load: %s, after %zu of %zu requests%s%s\n", what, answered, wanted, *message ? ": " : "",
          message);
  exit(1);
}

/* ---- Calls ------------------------------------------------------------------------------------------------------- */

static ssize_t give(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                    nghttp2_data_source *source, void *user) {
  (void)session, (void)id, (void)user;
  Call *call = source->ptr;
  ssize_t copied;
  if (copy_piece(call->body->data, call->body->size, &call->sent, out, room, &copied)) *flags |= NGHTTP2_DATA_FLAG_EOF;
  return copied;
}

static void ask(nghttp2_session *session, Call *call) {
  *call = (Call){.body = &bodies[started++ % body_count], .start = now()};
  nghttp2_data_provider provider = {.source.ptr = call, .read_callback = give};
  if (nghttp2_submit_request(session, NULL, headers, HEADER_COUNT, &provider, call) < 0) fail("cannot ask");
}

static int is(const uint8_t *text, size_t size, const char *word) {
  return size == strlen(word) && !memcmp(text, word, size);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *user) {
  (void)flags, (void)user;
  Call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  if (!call) return 0;
  if (is(name, name_size, ":status")) call->http_ok = is(value, value_size, "200");
  else if (is(name, name_size, "grpc-status")) call->grpc_ok = is(value, value_size, "0");
  else if (is(name, name_size, "grpc-message")) snprintf(message, sizeof message, "%.*s", (int)value_size, value);
  return 0;
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t error, void *user) {
  (void)user;
  Call *call = nghttp2_session_get_stream_user_data(session, id);
  if (!call) return 0;
  if (error || !call->http_ok || !call->grpc_ok) fail("a call was not answered by HTTP 200 and grpc-status 0");
  latencies[answered++] = (float)((now() - call->start) * 1e6);
  if (started < wanted) ask(session, call);
  return 0;
}

/* ---- Set up ------------------------------------------------------------------------------------------------------ */

static Bytes read_all(const char *path) {
  Bytes content = {0};
  uint8_t piece[4096];
  FILE *file = fopen(path, "rb");
  if (!file) die(path);
  for (size_t size; (size = fread(piece, 1, sizeof piece, file));) append(&content, piece, size);
  fclose(file);
  return content;
}

static void split_bodies(const Bytes *content) {
  for (size_t at = 0; at < content->size;) {
    const uint8_t *start = content->data + at;
    if (content->size - at < 5) fail("the file of bodies is cut short");
    size_t size = 5 + ((size_t)start[1] << 24 | (size_t)start[2] << 16 | (size_t)start[3] << 8 | start[4]);
    if (content->size - at < size) fail("the file of bodies is cut short");
    if (!(bodies = realloc(bodies, (body_count + 1) * sizeof *bodies))) die("realloc");
    bodies[body_count++] = (Body){start, size};
    at += size;
  }
  if (!body_count) fail("there are no bodies");
}

static nghttp2_session *new_session(void *user) {
  nghttp2_session_callbacks *calls;
  nghttp2_session *session;
  if (nghttp2_session_callbacks_new(&calls)) die("nghttp2");
  nghttp2_session_callbacks_set_on_header_callback(calls, on_header);
  nghttp2_session_callbacks_set_on_stream_close_callback(calls, on_close);
  if (nghttp2_session_client_new(&session, calls, user)) die("nghttp2");
  nghttp2_session_callbacks_del(calls);
  return session;
}

static void connect_to(Wire *wire, int epoll, unsigned port) {
  static const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                                    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW}};
  struct sockaddr_in to = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  wire->epoll = epoll;
  wire->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (wire->fd < 0 || connect(wire->fd, (struct sockaddr *)&to, sizeof to) || fcntl(wire->fd, F_SETFL, O_NONBLOCK))
    die("connect");
  wire->session = new_session(wire);
  wire_open(wire, settings, 2);
}

static int by_size(const void *one, const void *other) {
  float a = *(const float *)one, b = *(const float *)other;
  return (a > b) - (a < b);
}

int main(int count, char **words) {
  if (count != 7) {
    fprintf(stderr, "usage: nghttp2_load PORT PATH CONNECTIONS STREAMS REQUESTS BODIES\n");
    return 2;
  }
  unsigned port = (unsigned)atoi(words[1]);
  size_t connections = strtoul(words[3], NULL, 10), streams = strtoul(words[4], NULL, 10);
  headers[PATH_AT].value = (uint8_t *)words[2];
  headers[PATH_AT].valuelen = strlen(words[2]);
  wanted = strtoul(words[5], NULL, 10);
  Bytes content = read_all(words[6]);
  split_bodies(&content);
  if (!connections || !streams || wanted < connections * streams) fail("fewer requests than callers");

  int epoll = epoll_create1(EPOLL_CLOEXEC);
  Wire *wires = calloc(connections, sizeof *wires);
  Call *calls = calloc(connections * streams, sizeof *calls);
  latencies = calloc(wanted, sizeof *latencies);
  if (epoll < 0 || !wires || !calls || !latencies) die("start");
  for (size_t i = 0; i < connections; i++) connect_to(&wires[i], epoll, port);

  double start = now();
  for (size_t i = 0; i < connections * streams; i++) ask(wires[i / streams].session, &calls[i]);
  for (size_t i = 0; i < connections; i++)
    if (wire_flush(&wires[i])) fail("a connection was lost");
  while (answered < wanted) {
    struct epoll_event ready[EVENTS];
    int ready_count = epoll_wait(epoll, ready, EVENTS, PATIENCE_MS);
    if (ready_count < 0 && errno != EINTR) die("epoll_wait");
    if (!ready_count) fail("nothing came for 30 seconds");
    for (int i = 0; i < ready_count && answered < wanted; i++)
      if (wire_pass(ready[i].data.ptr)) fail("a connection was lost");
  }
  double seconds = now() - start;
  for (size_t i = 0; i < connections; i++) wire_close(&wires[i]);
  qsort(latencies, wanted, sizeof *latencies, by_size);
  printf("{\"requests\": %zu, \"seconds\": %.6f, \"p50_us\": %.1f}\n", wanted, seconds, (double)latencies[wanted / 2]);
  return 0;
}
