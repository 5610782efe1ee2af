// viewers: opens streaming responses, checks each and times what arrives; prints one JSON object.
//
//   viewers -u URL [-H 'name: value']… [-d BODY] -c VIEWERS -n CHUNKS [-i ID,ID,…] [-e END] [-R RAMP_S] [-S SPACING_MS] [-T TIMEOUT_S] [-w WORD]
//
// -i: `{id}` in the URL is ID (viewer i: the one at i modulo their number). -e: when a response is over: `whole` (HTTP says
// so, after [DONE]; the default), `done` (at [DONE]), `count` (after the last chunk), `hold` (never). -R: requests start
// evenly within so many seconds, else all at once. -w: six bytes that stand for [DONE]; what comes after the last chunk says it all
// once more then (the Responses API), and is not counted. -S: they start that far apart, give or take a half, so that no timer of
// the server falls into step. All connect first. Prints `ready` as soon as every viewer has its first chunk.
#include "common.h"

#define OPENING 256  // connections being opened at once

enum state { CONNECTING, CONNECTED, WAITING, READING, ENDED };
enum part { SIZE, DATA, AFTER_DATA, TRAILER };
enum end { WHOLE, DONE, COUNT, HOLD };

typedef struct {
  int fd;
  enum state state;
  bool chunked, done, closed, broken, begun;
  enum part part;
  uint64_t left;  // of an HTTP chunk, or of a body with content-length
  int field;  // inside a marker: 0 no, 1 its number, 2 its stamp
  uint64_t seq, stamp, next, chunks, gaps, repeated, bytes, start, due;
  char tail[6];
  int tail_length, head_length;
  char head[4096];
} viewer;

static int poller, count = 1, ids;
static const char *word = "[DONE]";
static bool again;
static enum end end_at;
static uint64_t expected, total, ended, begun, heads, refused, first_at, last_at;
static histogram headers, ttft, delivery, whole;
static const char *id[65536];
static char fields[4096];

static void end_viewer(viewer *v, bool broken) {
  v->state = ENDED;
  v->broken = broken;
  ended++;
  if (!broken) record(&whole, now_ns() - v->start);
  close(v->fd);
}

static bool on_marker(viewer *v, uint64_t now) {
  if (again && v->next == expected) return false;
  if (!v->begun) { v->begun = true; begun++; record(&ttft, now - v->start); }
  if (v->seq < v->next) v->repeated++;
  else { v->gaps += v->seq - v->next; v->next = v->seq + 1; }
  v->chunks++;
  total++;
  last_at = now;
  if (!v->stamp) return true;
  if (!first_at) first_at = now;
  record(&delivery, now > v->stamp ? now - v->stamp : 0);
  return true;
}

static void scan(viewer *v, const char *p, size_t length, uint64_t now) {
  const char *end = p + length, *after = p;
  v->bytes += length;
  for (const char *s = p; s < end;) {
    if (!v->field) {
      s = memchr(s, '~', (size_t)(end - s));
      if (!s) break;
      v->field = 1;
      v->seq = v->stamp = 0;
      s++;
    } else if (*s >= '0' && *s <= '9') {
      uint64_t *number = v->field == 1 ? &v->seq : &v->stamp;
      *number = *number * 10 + (uint64_t)(*s++ - '0');
    } else if (*s == ':' && v->field == 1) { v->field = 2; s++; }
    else {
      if (*s++ == '~' && v->field == 2 && on_marker(v, now)) after = s;
      v->field = 0;
    }
  }
  // The word, which comes after the last marker, and may come in pieces.
  size_t rest = (size_t)(end - after);
  if (after == p && v->tail_length) {
    char seam[12];
    size_t some = rest < 6 ? rest : 6;
    memcpy(seam, v->tail, (size_t)v->tail_length);
    memcpy(seam + v->tail_length, after, some);
    v->done |= memmem(seam, (size_t)v->tail_length + some, word, 6) != NULL;
  }
  v->done |= memmem(after, rest, word, 6) != NULL;
  if (rest >= 5) { memcpy(v->tail, end - 5, 5); v->tail_length = 5; }
  else if (after != p) { memcpy(v->tail, after, rest); v->tail_length = (int)rest; }
  else {
    char joined[12];
    memcpy(joined, v->tail, (size_t)v->tail_length);
    memcpy(joined + v->tail_length, after, rest);
    int length_joined = v->tail_length + (int)rest, kept = length_joined < 5 ? length_joined : 5;
    memcpy(v->tail, joined + length_joined - kept, (size_t)kept);
    v->tail_length = kept;
  }
}

static int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1; }

static void on_body(viewer *v, const char *p, size_t length, uint64_t now) {
  if (!v->chunked) {
    scan(v, p, length, now);
    if (v->left) v->closed = !(v->left -= length < v->left ? length : v->left);
    return;
  }
  for (const char *end = p + length; p < end && !v->closed;) {
    size_t here = (size_t)(end - p) < v->left ? (size_t)(end - p) : v->left;
    switch (v->part) {
      case SIZE:
        if (*p == '\n') { if (v->left) v->part = DATA; else v->part = TRAILER; }
        else if (hex(*p) >= 0) v->left = v->left * 16 + (uint64_t)hex(*p);
        p++;
        break;
      case DATA:
        scan(v, p, here, now);
        p += here;
        if (!(v->left -= here)) v->part = AFTER_DATA;
        break;
      case AFTER_DATA: if (*p++ == '\n') v->part = SIZE; break;
      case TRAILER: if (*p++ == '\n') v->closed = true; break;  // nobody here sends trailers
    }
  }
}

// Returns how many bytes of the piece are headers, or -1 while there is no end of them.
static ssize_t on_head(viewer *v, const char *p, size_t length, uint64_t now) {
  int before = v->head_length;
  size_t some = sizeof v->head - 1 - (size_t)before;
  if (length < some) some = length;
  memcpy(v->head + before, p, some);
  v->head[v->head_length += (int)some] = 0;
  char *end = strstr(v->head, "\r\n\r\n");
  if (!end) { if (v->head_length == sizeof v->head - 1) end_viewer(v, true); return -1; }
  char *coding = strcasestr(v->head, "\r\ntransfer-encoding: chunked"), *size = strcasestr(v->head, "\r\ncontent-length:");
  v->chunked = coding && coding < end;
  v->left = !v->chunked && size && size < end ? strtoull(size + 17, NULL, 10) : 0;
  v->state = READING;
  heads++;
  record(&headers, now - v->start);
  if (atoi(v->head + 9) != 200) {
    if (!refused++) fprintf(stderr, "refused: %.600s\n", v->head);
    end_viewer(v, true);
    return -1;
  }
  return end + 4 - v->head - before;
}

static void receive(viewer *v) {
  static char buffer[256 * 1024];
  for (int turn = 0; turn < 4 && v->state != ENDED; turn++) {
    ssize_t n = recv(v->fd, buffer, sizeof buffer, 0);
    uint64_t now = now_ns();
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      v->closed |= n == 0 && v->state == READING && !v->chunked && !v->left;
      end_viewer(v, !v->closed);
      return;
    }
    ssize_t skip = 0;
    if (v->state == WAITING && (skip = on_head(v, buffer, (size_t)n, now)) < 0) continue;
    on_body(v, buffer + skip, (size_t)(n - skip), now);
    if ((end_at == WHOLE && v->closed) || (end_at == DONE && v->done) || (end_at == COUNT && v->next >= expected)) end_viewer(v, false);
    if (n < (ssize_t)sizeof buffer) return;
  }
}

static void connect_one(viewer *v, const target *t) {
  int one = 1;
  v->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (v->fd < 0) fail("socket");
  setsockopt(v->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(v->fd, (void *)&t->address, sizeof t->address) && errno != EINPROGRESS) fail("connect");
  struct epoll_event e = {.events = EPOLLOUT, .data.ptr = v};
  epoll_ctl(poller, EPOLL_CTL_ADD, v->fd, &e);
}

static void on_connected(viewer *v) {
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(v->fd, SOL_SOCKET, SO_ERROR, &error, &length);
  v->state = CONNECTED;
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = v};
  epoll_ctl(poller, EPOLL_CTL_MOD, v->fd, &e);
  if (error) { errno = error; perror("connect"); end_viewer(v, true); }
}

static void ask(viewer *v, int number, const target *t, const char *body) {
  char request[16 * 1024], path[2048];
  const char *hole = strstr(t->path, "{id}");
  if (hole && ids) snprintf(path, sizeof path, "%.*s%s%s", (int)(hole - t->path), t->path, id[number % ids], hole + 4);
  else snprintf(path, sizeof path, "%s", t->path);
  int n = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nhost: %s\r\naccept: text/event-stream\r\n%s", body ? "POST" : "GET", path, t->host, fields);
  if (body) n += snprintf(request + n, sizeof request - (size_t)n, "content-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
  else n += snprintf(request + n, sizeof request - (size_t)n, "\r\n");
  v->state = WAITING;
  v->start = now_ns();
  if (n >= (int)sizeof request || send(v->fd, request, (size_t)n, MSG_NOSIGNAL) != n) end_viewer(v, true);
}

static void report(const viewer *all) {
  uint64_t complete = 0, gaps = 0, repeated = 0, broken = 0, unfinished = 0, bytes = 0, endless = 0;
  for (const viewer *v = all; v < all + count; v++) {
    gaps += v->gaps;
    repeated += v->repeated;
    bytes += v->bytes;
    broken += v->broken;
    unfinished += v->state != ENDED && end_at != HOLD;
    bool has_end = end_at == WHOLE ? v->done && v->closed : end_at == DONE ? v->done : true;
    endless += !has_end;
    complete += v->next == expected && !v->gaps && !v->repeated && has_end && !v->broken;
  }
  struct rusage use;
  getrusage(RUSAGE_SELF, &use);
  printf("{\"viewers\":%d,\"complete\":%llu,\"gaps\":%llu,\"repeated\":%llu,\"endless\":%llu,\"broken\":%llu,\"refused\":%llu,\"unfinished\":%llu,",
         count, (unsigned long long)complete, (unsigned long long)gaps, (unsigned long long)repeated, (unsigned long long)endless,
         (unsigned long long)broken, (unsigned long long)refused, (unsigned long long)unfinished);
  printf("\"chunks\":%llu,\"bytes\":%llu,\"window_s\":%.6f,\"cpu_s\":%.6f,", (unsigned long long)total, (unsigned long long)bytes,
         first_at ? (double)(last_at - first_at) / 1e9 : 0.0,
         (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) + (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6);
  print_histogram("headers_ms", &headers);
  printf(",");
  print_histogram("ttft_ms", &ttft);
  printf(",");
  print_histogram("delivery_ms", &delivery);
  printf(",");
  print_histogram("total_ms", &whole);
  printf("}\n");
}

int main(int argc, char **argv) {
  const char *url = NULL, *body = NULL;
  double timeout_s = 60, ramp_s = 0, spacing_ms = 0;
  for (int option; (option = getopt(argc, argv, "u:H:d:c:n:i:e:R:S:T:w:")) != -1;) switch (option) {
      case 'u': url = optarg; break;
      case 'd': body = optarg; break;
      case 'c': count = atoi(optarg); break;
      case 'n': expected = strtoull(optarg, NULL, 10); break;
      case 'w': if (strlen(optarg) != 6) return 2; word = optarg; again = true; break;
      case 'R': ramp_s = atof(optarg); break;
      case 'S': spacing_ms = atof(optarg); break;
      case 'T': timeout_s = atof(optarg); break;
      case 'e': end_at = *optarg == 'd' ? DONE : *optarg == 'c' ? COUNT : *optarg == 'h' ? HOLD : WHOLE; break;
      case 'i': for (char *s = strtok(optarg, ","); s; s = strtok(NULL, ",")) id[ids++] = s; break;
      case 'H': snprintf(fields + strlen(fields), sizeof fields - strlen(fields), "%s\r\n", optarg); break;
      default: return 2;
    }
  if (!url || count < 1) { fprintf(stderr, "usage: see the first lines of viewers.c\n"); return 2; }
  prepare();
  target t = parse_url(url);
  viewer *all = calloc((size_t)count, sizeof *all);
  poller = epoll_create1(0);
  struct epoll_event events[1024];
  int opened = 0, connected = 0, asked = 0;
  uint64_t begin = now_ns(), deadline = begin + (uint64_t)(timeout_s * 1e9), due = 0;
  bool told = false;
  srand(1);
  while (ended < (uint64_t)count && now_ns() < deadline) {
    while (opened < count && opened - connected < OPENING) connect_one(&all[opened++], &t);
    if (connected == count) {
      if (!due) due = now_ns();
      for (; asked < count && now_ns() >= due; asked++) {
        if (all[asked].state == CONNECTED) ask(&all[asked], asked, &t, body);
        double apart_ms = spacing_ms ? spacing_ms * (0.5 + (double)rand() / RAND_MAX) : ramp_s * 1000 / count;
        due += (uint64_t)(apart_ms * 1e6);
      }
    }
    if (!told && begun + refused >= (uint64_t)count) { told = true; printf("ready\n"); fflush(stdout); }
    int n = epoll_wait(poller, events, 1024, asked < count ? (connected == count ? 1 : 10) : 20);
    for (int i = 0; i < n; i++) {
      viewer *v = events[i].data.ptr;
      if (v->state == CONNECTING) { on_connected(v); connected++; }
      else if (v->state != ENDED) receive(v);
    }
  }
  report(all);
  return 0;
}
