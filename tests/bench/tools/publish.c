// publish: sends stamped chunks to a broker's publish URL over one connection, each after the answer to the one before.
//
//   publish -u URL [-H 'name: value']… -n CHUNKS -r RATE [-b BODY] [-f FINAL] [-g] [-p PAD]
//
// `{chunk}` in BODY is the chunk's JSON; FINAL is sent last. RATE 0: as fast as it is answered. -g: after chunk 0, which is
// not to be timed, it prints `waiting` and waits for a line on stdin. Prints one JSON object.
#include "common.h"

static char reply[64 * 1024];

static void exchange(int fd, const char *method, const target *t, const char *fields, const char *body) {
  static char request[64 * 1024];
  int n = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nhost: %s\r\n%scontent-length: %zu\r\n\r\n%s", method, t->path, t->host, fields, strlen(body), body);
  if (n >= (int)sizeof request || send(fd, request, (size_t)n, MSG_NOSIGNAL) != n) fail("send");
  char *end;
  for (size_t got = 0; !got || !whole_body(reply, got, &end);) {
    ssize_t r = recv(fd, reply + got, sizeof reply - 1 - got, 0);
    if (r <= 0) fail("the broker hung up");
    reply[got += (size_t)r] = 0;
  }
  if (atoi(reply + 9) >= 300) { fprintf(stderr, "refused: %.300s\n", reply); exit(1); }
}

static int connect_to(const target *t) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (void *)&t->address, sizeof t->address)) fail("connect");
  return fd;
}

int main(int argc, char **argv) {
  const char *url = NULL, *form = "{chunk}", *final = NULL, *hole;
  char fields[4096] = "";
  long count = 100, rate = 50, pad = 8;
  bool gated = false;
  for (int option; (option = getopt(argc, argv, "u:H:n:r:b:f:gp:")) != -1;) switch (option) {
      case 'u': url = optarg; break;
      case 'n': count = atol(optarg); break;
      case 'r': rate = atol(optarg); break;
      case 'b': form = optarg; break;
      case 'f': final = optarg; break;
      case 'p': pad = atol(optarg) & 0x3fff; break;
      case 'g': gated = true; break;
      case 'H': snprintf(fields + strlen(fields), sizeof fields - strlen(fields), "%s\r\n", optarg); break;
      default: return 2;
    }
  if (!url || !(hole = strstr(form, "{chunk}"))) { fprintf(stderr, "usage: see the first lines of publish.c\n"); return 2; }
  prepare();
  target t = parse_url(url);
  int fd = connect_to(&t);
  static histogram answered;
  uint64_t begin = now_ns(), late = 0;
  for (long i = 0; i < count; i++) {
    uint64_t due = begin + (rate ? (uint64_t)i * (SECOND / (uint64_t)rate) : 0), now = now_ns();
    struct timespec at = {(time_t)(due / SECOND), (long)(due % SECOND)};
    if (due > now) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    else late += rate && now - due > SECOND / (uint64_t)rate;
    static char chunk[20 * 1024], body[32 * 1024];
    uint64_t stamp = now_ns();
    write_chunk(chunk, sizeof chunk, "bench", (uint64_t)i, gated && !i ? 0 : stamp, !i, (int)pad);
    snprintf(body, sizeof body, "%.*s%s%s", (int)(hole - form), form, chunk, hole + 7);
    exchange(fd, "POST", &t, fields, body);
    record(&answered, now_ns() - stamp);
    if (gated && !i) {
      printf("waiting\n");
      fflush(stdout);
      if (getchar() == EOF) return 1;
      close(fd);  // many servers end a connection that was idle for some seconds
      fd = connect_to(&t);
      begin = now_ns() - (rate ? SECOND / (uint64_t)rate : 0);
    }
  }
  if (final) exchange(fd, "POST", &t, fields, final);
  printf("{\"published\":%ld,\"late\":%llu,\"wall_s\":%.4f,", count, (unsigned long long)late, (double)(now_ns() - begin) / 1e9);
  print_histogram("answered_ms", &answered);
  printf("}\n");
  return 0;
}
