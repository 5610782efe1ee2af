// upstream [PORT]: a fake OpenAI that streams what the model's name says, stamped (common.h). Prints `port N`.
//
//   bench-n500-r50-w200-p8-g1   500 chunks, 50 a second (r0: as fast as the socket takes), the first after 200 ms, 8 bytes
//                               of padding each; g1: after chunk 0, which is not to be timed, it waits for POST /go.
//
// Works for many thousand streams in one thread: a heap of due times, one epoll.
#include "common.h"

#define ROOM (256 * 1024)
#define CHUNK_ROOM (20 * 1024)

typedef struct stream {
  int fd, slot;  // place in the heap, -1: not in it
  bool streaming, blocked, gated, usage;
  uint64_t count, next, due, period;
  int pad;
  char model[96];
  size_t received, ready, sent;
  char request[64 * 1024], out[ROOM];
  struct stream *after;  // among those that wait at the gate
} stream;

static int poller;
static stream **heap, *gate;
static int size, room;

static void place(stream *s, int slot) { heap[slot] = s; s->slot = slot; }

static void settle(int slot) {
  stream *s = heap[slot];
  while (slot && s->due < heap[(slot - 1) / 2]->due) { place(heap[(slot - 1) / 2], slot); slot = (slot - 1) / 2; }
  for (int child; (child = 2 * slot + 1) < size; slot = child) {
    if (child + 1 < size && heap[child + 1]->due < heap[child]->due) child++;
    if (heap[child]->due >= s->due) break;
    place(heap[child], slot);
  }
  place(s, slot);
}

static void schedule(stream *s) {
  if (s->slot < 0) {
    if (size == room) heap = realloc(heap, sizeof *heap * (size_t)(room = room ? 2 * room : 1024));
    place(s, size++);
  }
  settle(s->slot);
}

static void unschedule(stream *s) {
  int slot = s->slot;
  if (slot < 0) return;
  s->slot = -1;
  stream *last = heap[--size];
  if (last != s) { place(last, slot); settle(slot); }
}

static void drop(stream *s) {
  unschedule(s);
  for (stream **p = &gate; *p; p = &(*p)->after) if (*p == s) { *p = s->after; break; }
  close(s->fd);
  free(s);
}

static void watch(stream *s, bool writable) {
  if (s->blocked == writable) return;
  s->blocked = writable;
  struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = s};
  epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
}

// Returns false when the connection is gone.
static bool flush(stream *s) {
  while (s->sent < s->ready) {
    ssize_t n = send(s->fd, s->out + s->sent, s->ready - s->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) { watch(s, true); return true; }
    if (n < 0) return false;
    s->sent += (size_t)n;
  }
  s->sent = s->ready = 0;
  watch(s, false);
  return true;
}

static void put(stream *s, const char *text, size_t length) {
  memcpy(s->out + s->ready, text, length);
  s->ready += length;
}

static void put_event(stream *s, const char *data, int length) {
  char head[32];
  put(s, head, (size_t)snprintf(head, sizeof head, "%x\r\ndata: ", (unsigned)length + 8));
  put(s, data, (size_t)length);
  put(s, "\n\n\r\n", 4);
}

static void say(stream *s) {
  char data[CHUNK_ROOM];
  uint64_t stamp = s->gated && s->next == 0 ? 0 : now_ns();
  put_event(s, data, write_chunk(data, sizeof data, s->model, s->next, stamp, s->next == 0, s->pad));
  s->next++;
}

static void finish(stream *s) {
  static const char form[] = "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"%s\",";
  char data[512];
  int n = snprintf(data, sizeof data, form, s->model);
  put_event(s, data, n + snprintf(data + n, sizeof data - (size_t)n, "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}"));
  if (s->usage)
    put_event(s, data, n + snprintf(data + n, sizeof data - (size_t)n,
                                    "\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":%llu,\"total_tokens\":%llu}}",
                                    (unsigned long long)s->count, (unsigned long long)s->count + 10));
  put_event(s, "[DONE]", 6);
  put(s, "0\r\n\r\n", 5);
  s->streaming = false;
}

static long option(const char *model, const char *name, long otherwise) {
  const char *found = strstr(model, name);
  return found ? atol(found + strlen(name)) : otherwise;
}

static bool answer(stream *s, const char *type, const char *body) {
  char head[512];
  put(s, head, (size_t)snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", type, strlen(body), body));
  return flush(s);
}

static void open_gate(void) {
  uint64_t t = now_ns();
  for (stream *s = gate, *after; s; s = after) { after = s->after; s->due = t; schedule(s); }
  gate = NULL;
}

static bool begin(stream *s, const char *body) {
  if (!strncmp(s->request, "POST /go ", 9)) { open_gate(); return answer(s, "text/plain", "gone\n"); }
  const char *model = strstr(body, "bench-n");
  if (s->request[0] == 'G' || !model) return answer(s, "application/json", "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\"}]}");
  snprintf(s->model, sizeof s->model, "%.*s", (int)strcspn(model, "\"\\ "), model);
  long rate = option(s->model, "-r", 0);
  s->count = (uint64_t)option(s->model, "-n", 10);
  s->period = rate ? SECOND / (uint64_t)rate : 0;
  s->pad = (int)option(s->model, "-p", 8) & 0x3fff;
  s->gated = option(s->model, "-g", 0);
  s->usage = strstr(body, "include_usage");
  s->next = 0;
  s->streaming = true;
  static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
  put(s, head, sizeof head - 1);
  s->due = now_ns() + (uint64_t)option(s->model, "-w", 0) * 1000000;
  schedule(s);
  return flush(s);
}

// Returns false when the connection is gone.
static bool receive(stream *s) {
  for (;;) {
    ssize_t n = recv(s->fd, s->request + s->received, sizeof s->request - 1 - s->received, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    s->received += (size_t)n;
    s->request[s->received] = 0;
    char *end, *body = whole_body(s->request, s->received, &end);
    if (!body) continue;
    s->received = 0;
    if (!begin(s, body)) return false;
  }
}

// One paced chunk, or as many unpaced ones as the socket takes, one write each. Returns false when the connection is gone.
static bool speak(stream *s) {
  for (int turn = 0; turn < (s->period ? 1 : 64); turn++) {
    say(s);
    if (s->gated && s->next == 1) { unschedule(s); s->after = gate; gate = s; return flush(s); }
    if (s->next >= s->count) { unschedule(s); finish(s); return flush(s); }
    if (!flush(s)) return false;
    if (s->blocked && !s->period) { unschedule(s); return true; }
    if (ROOM - s->ready < 2 * CHUNK_ROOM) return false;  // paced, and nobody reads
  }
  s->due = s->period ? s->due + s->period : now_ns();
  settle(s->slot);
  return true;
}

static void on_event(int listener, struct epoll_event *event) {
  stream *s = event->data.ptr;
  if (!s) {
    for (int fd; (fd = accept_one(listener)) >= 0;) {
      stream *new = calloc(1, sizeof *new);
      new->fd = fd;
      new->slot = -1;
      struct epoll_event e = {.events = EPOLLIN, .data.ptr = new};
      epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
    return;
  }
  bool alive = !(event->events & EPOLLIN) || receive(s);
  if (alive && (event->events & EPOLLOUT)) {
    alive = flush(s);
    if (alive && !s->blocked && s->streaming && !s->period && s->slot < 0) { s->due = now_ns(); schedule(s); }
  } else if (alive && !(event->events & EPOLLIN)) alive = false;
  if (!alive) drop(s);
}

int main(int argc, char **argv) {
  prepare();
  int listener = listen_on(argc > 1 ? atoi(argv[1]) : 0), alarm = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  poller = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
  e.data.ptr = &alarm;
  epoll_ctl(poller, EPOLL_CTL_ADD, alarm, &e);
  for (;;) {
    if (size) {
      struct itimerspec at = {.it_value = {(time_t)(heap[0]->due / SECOND), (long)(heap[0]->due % SECOND)}};
      timerfd_settime(alarm, TFD_TIMER_ABSTIME, &at, NULL);
    }
    int n = epoll_wait(poller, events, 512, -1);
    for (int i = 0; i < n; i++) {
      uint64_t ignored;
      if (events[i].data.ptr != &alarm) on_event(listener, &events[i]);
      else if (read(alarm, &ignored, sizeof ignored) < 0 && errno != EAGAIN) fail("timer");
    }
    for (uint64_t t = now_ns(); size && heap[0]->due <= t;) {
      stream *s = heap[0];
      if (!speak(s)) drop(s);
    }
  }
}
