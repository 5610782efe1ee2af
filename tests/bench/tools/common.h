// What the tools share: a clock, a histogram, loopback addresses, and the marker that every chunk's text carries.
//
// A marker is `~SEQ:NS~`: the chunk's number and CLOCK_MONOTONIC when it was written. A reader on the same machine finds
// it in whatever framing arrives, so latency is one-way, and gaps, repetitions and order are checked for each viewer.
// NS = 0 says: count me, do not time me.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

__attribute__((noreturn)) static inline void fail(const char *what) {
  if (errno) perror(what); else fprintf(stderr, "%s\n", what);
  exit(2);
}

static inline void prepare(void) {
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_PDEATHSIG, SIGTERM);  // whoever started us is gone: so is our purpose
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// ---- histogram: 128 steps for each power of two, so a quantile is off by less than 1 %

#define STEPS 128
typedef struct { uint64_t count, max; double sum; uint32_t bucket[58 * STEPS]; } histogram;

static inline int bucket_of(uint64_t value) {
  if (value < 2 * STEPS) return (int)value;
  int shift = 56 - __builtin_clzll(value);  // brings the value into STEPS … 2 * STEPS - 1
  return shift * STEPS + (int)(value >> shift);
}

static inline double middle_of(int bucket) {
  if (bucket < 2 * STEPS) return bucket;
  int shift = bucket / STEPS - 1;
  return ((double)(bucket - shift * STEPS) + 0.5) * (double)(1ull << shift);
}

static inline void record(histogram *h, uint64_t value) {
  h->count++;
  h->sum += (double)value;
  if (value > h->max) h->max = value;
  h->bucket[bucket_of(value)]++;
}

static inline double quantile_ms(const histogram *h, double q) {
  uint64_t rank = (uint64_t)(q * (double)(h->count - 1)) + 1, seen = 0;
  for (int i = 0; i < 58 * STEPS; i++)
    if ((seen += h->bucket[i]) >= rank) return (middle_of(i) < (double)h->max ? middle_of(i) : (double)h->max) / 1e6;
  return (double)h->max / 1e6;
}

// A histogram of nothing is null: no figure is better than a made-up one.
static inline void print_histogram(const char *name, const histogram *h) {
  if (!h->count) { printf("\"%s\":null", name); return; }
  printf("\"%s\":{\"count\":%llu,\"mean\":%.4f,\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,\"max\":%.4f}", name,
         (unsigned long long)h->count, h->sum / (double)h->count / 1e6, quantile_ms(h, .5), quantile_ms(h, .9),
         quantile_ms(h, .99), (double)h->max / 1e6);
}

// ---- addresses

typedef struct { struct sockaddr_in address; char host[64]; const char *path; } target;

// Only http://127.x.y.z:PORT/PATH. These tools are made to overload what they talk to.
static inline target parse_url(const char *url) {
  target t = {.address.sin_family = AF_INET, .path = "/"};
  char ip[32];
  int port, length = 0;
  if (sscanf(url, "http://%31[0-9.]:%d%n", ip, &port, &length) != 2 || inet_pton(AF_INET, ip, &t.address.sin_addr) != 1 ||
      ntohl(t.address.sin_addr.s_addr) >> 24 != 127) {
    fprintf(stderr, "not a URL of this machine, as http://127.0.0.1:PORT/PATH: %s\n", url);
    exit(2);
  }
  t.address.sin_port = htons((uint16_t)port);
  snprintf(t.host, sizeof t.host, "%s:%d", ip, port);
  if (url[length] == '/') t.path = url + length;
  return t;
}

// Listens on 127.0.0.1; with port 0 on a free one. Prints `port N` for whoever started us.
static inline int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof a;
  if (bind(fd, (void *)&a, sizeof a) || listen(fd, 8192) || getsockname(fd, (void *)&a, &length)) fail("listen");
  printf("port %d\n", ntohs(a.sin_port));
  fflush(stdout);
  return fd;
}

static inline int accept_one(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
  if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

// The body of a whole HTTP request in a zero-terminated buffer, or NULL until it is there; its end goes to `end`.
static inline char *whole_body(char *buffer, size_t length, char **end) {
  char *head = strstr(buffer, "\r\n\r\n");
  if (!head) return NULL;
  char *body = head + 4, *field = strcasestr(buffer, "\r\ncontent-length:");
  if (strcasestr(buffer, "\r\ntransfer-encoding: chunked") && strcasestr(buffer, "\r\ntransfer-encoding: chunked") < head) {
    char *last = strstr(body - 2, "\r\n0\r\n\r\n");
    if (last) *end = last + 7;
    return last ? body : NULL;
  }
  size_t size = field && field < head ? strtoul(field + 17, NULL, 10) : 0;
  *end = body + size;
  return *end <= buffer + length ? body : NULL;
}

// ---- the chunk

static char padding[16385];

// OpenAI's chunk with a marker in it, as JSON. `first` brings the role.
static inline int write_chunk(char *out, size_t size, const char *model, uint64_t seq, uint64_t stamp, bool first, int pad) {
  if (!padding[0]) memset(padding, 'x', sizeof padding - 1);
  return snprintf(out, size,
                  "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"%s\","
                  "\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"~%llu:%llu~ %.*s\"},\"finish_reason\":null}]}",
                  model, first ? "\"role\":\"assistant\"," : "", (unsigned long long)seq, (unsigned long long)stamp, pad, padding);
}
