// ceiling [PORT]: what the kernel itself can do. One channel, no safety: POST writes one event to every viewer with send(),
// GET gets what was published so far, with one send, and then the rest. The body `[DONE]` ends the stream. Prints `port N`.
#include "common.h"

static int viewers[65536], watching;
static char *history;
static size_t kept, room;
static bool over;

static void forget(int fd) {
  for (int i = 0; i < watching; i++) if (viewers[i] == fd) { viewers[i] = viewers[--watching]; break; }
  close(fd);
}

static void keep(const char *bytes, size_t length) {
  if (kept + length > room) history = realloc(history, room = 2 * (kept + length));
  memcpy(history + kept, bytes, length);
  kept += length;
}

static void join_viewer(int fd) {
  static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
  int flags = MSG_NOSIGNAL | (kept ? MSG_MORE : 0);
  send(fd, head, sizeof head - 1, flags);
  if (kept) send(fd, history, kept, MSG_NOSIGNAL);  // small in every measurement: the socket takes it whole
  if (!over) viewers[watching++] = fd;
}

static void publish(int fd, const char *body) {
  static char event[128 * 1024];
  if (over) kept = 0;  // the next stream
  over = !strcmp(body, "[DONE]");
  int n = snprintf(event, sizeof event, "%zx\r\ndata: %s\n\n\r\n%s", strlen(body) + 8, body, over ? "0\r\n\r\n" : "");
  for (int i = 0; i < watching; i++) send(viewers[i], event, (size_t)n, MSG_NOSIGNAL);
  keep(event, (size_t)n);
  if (over) watching = 0;
  static const char ok[] = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
  send(fd, ok, sizeof ok - 1, MSG_NOSIGNAL);
}

int main(int argc, char **argv) {
  prepare();
  int listener = listen_on(argc > 1 ? atoi(argv[1]) : 0), poller = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, events[256];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
  static char request[64 * 1024];
  for (;;) {
    int n = epoll_wait(poller, events, 256, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        for (int new; (new = accept_one(listener)) >= 0;) {
          e.data.fd = new;
          epoll_ctl(poller, EPOLL_CTL_ADD, new, &e);
        }
        continue;
      }
      ssize_t r = recv(fd, request, sizeof request - 1, 0);
      if (r <= 0) { if (r == 0 || errno != EAGAIN) forget(fd); continue; }
      request[r] = 0;  // what our own tools send comes in one piece
      char *end, *body = whole_body(request, (size_t)r, &end);
      if (request[0] == 'G') join_viewer(fd);
      else if (body) {
        *end = 0;
        publish(fd, body);
      }
    }
  }
}
