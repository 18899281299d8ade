#define _GNU_SOURCE /* pipe2, POLLRDHUP */
#include "remote.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* TVM's server in Python serves each session in a process, and stops serving for good when one ends with another status
   than 0: where a kernel crashes, memory is short, or the host is gone before its answer was written. So a session goes
   on in a process of its own, and the one that the server knows waits for it, and ends with 0 however that went. */

enum { DESCRIPTORS = 1024, LONGEST_COMMAND = 4096, GRACE_MS = 1000 };

static size_t read_command(pid_t process, char* to) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%ld/cmdline", (long)process);
  FILE* file = fopen(path, "rb");
  size_t bytes = file ? fread(to, 1, LONGEST_COMMAND, file) : 0;
  if (file) fclose(file);
  return bytes;
}

/* Whether this process was made by one that runs the same program, as a server makes one for a session. An app that
   serves in its only process was not, and must not be doubled. */
static int is_forked(void) {
  char own[LONGEST_COMMAND], parent[LONGEST_COMMAND];
  size_t bytes = read_command(getpid(), own);
  return bytes && bytes == read_command(getppid(), parent) && !memcmp(own, parent, bytes);
}

/* A process that is doubled keeps only the thread that asked for it. */
static int has_one_thread(void) {
  DIR* threads = opendir("/proc/self/task");
  int count = 0;
  for (struct dirent* one; threads && (one = readdir(threads));) count += one->d_name[0] != '.';
  if (threads) closedir(threads);
  return count == 1;
}

/* Port of this end of a TCP connection that listens, or that is connected; -1 where it is none such. */
static int port_of(int descriptor, int is_listening) {
  struct sockaddr_storage own, peer;
  socklen_t bytes = sizeof own, peer_bytes = sizeof peer, option_bytes = sizeof(int);
  int listens = 0;
  if (getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &option_bytes) || listens != is_listening) return -1;
  if (getsockname(descriptor, (struct sockaddr*)&own, &bytes)) return -1;
  if (!is_listening && getpeername(descriptor, (struct sockaddr*)&peer, &peer_bytes)) return -1;
  if (own.ss_family == AF_INET) return ((struct sockaddr_in*)&own)->sin_port;
  return own.ss_family == AF_INET6 ? ((struct sockaddr_in6*)&own)->sin6_port : -1;
}

/* The connection to the host: it came in at the port where the server listens. -1 where that cannot be told. */
static int find_connection(void) {
  for (int server = 0; server < DESCRIPTORS; ++server) {
    int port = port_of(server, 1);
    for (int one = 0; port != -1 && one < DESCRIPTORS; ++one)
      if (port_of(one, 0) == port) return one;
  }
  return -1;
}

static void await(struct pollfd* events, nfds_t count, int timeout_ms) {
  while (poll(events, count, timeout_ms) < 0 && errno == EINTR) {
  }
}

/* Wait until the session has ended, or its host is gone: what it measures then is for nobody. */
static _Noreturn void stand_by(pid_t session, int its_end) {
  struct pollfd events[] = {{its_end, POLLIN, 0}, {find_connection(), POLLRDHUP, 0}};
  await(events, 2, -1);
  if (!events[0].revents) await(events, 1, GRACE_MS);
  int status = 0, is_stopped = !events[0].revents;
  if (is_stopped) kill(session, SIGKILL);
  while (waitpid(session, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status) && !is_stopped)
    fprintf(stderr, "coexec: a session was ended by a signal: %s\n", strsignal(WTERMSIG(status)));
  _exit(0);
}

coexec_status remote_guard(const char* request, path_finder find_path, answer* to) {
  static int is_guarded;
  int ends[2];
  (void)request, (void)find_path;
  if (!is_guarded && is_forked() && has_one_thread() && !pipe2(ends, O_CLOEXEC)) {
    pid_t server = getpid(), session = fork();
    close(ends[session ? 1 : 0]); /* the other one closes by itself when the session ends */
    if (session > 0) stand_by(session, ends[0]);
    is_guarded = !session;
    if (is_guarded) {
      prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever ends the session's process means this one */
      if (getppid() != server) _exit(0);
    } else {
      close(ends[0]);
    }
  }
  say(to, "guarded=%d\n", is_guarded);
  return COEXEC_OK;
}
