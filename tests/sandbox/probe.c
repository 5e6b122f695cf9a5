/* Runs inside a container and says what the kernel answered. One word and one number a line.
   Every argument is wrong on purpose: a call that gets through does nothing but complain. */
#define _GNU_SOURCE
#include <errno.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void say(const char *name, long result) { printf("%s %d\n", name, result == -1 ? errno : 0); }

#define CALL(name, number, ...) (errno = 0, say(name, syscall(number, ##__VA_ARGS__)))
#define BAD ((void *)1)

static void namespaces(void) {
  struct { const char *name; int flag; } flags[] = {
      {"clone_newcgroup", CLONE_NEWCGROUP}, {"clone_newuts", CLONE_NEWUTS}, {"clone_newipc", CLONE_NEWIPC},
      {"clone_newuser", CLONE_NEWUSER},     {"clone_newpid", CLONE_NEWPID}, {"clone_newnet", CLONE_NEWNET},
      {"clone_newns", CLONE_NEWNS}};
  for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
    errno = 0;
    long pid = syscall(SYS_clone, flags[i].flag | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    say(flags[i].name, pid);
    if (pid > 0) waitpid(pid, 0, 0);
  }
}

static void calls(void) {
  CALL("ptrace", SYS_ptrace, 16, -1, 0, 0);
  CALL("process_vm_readv", SYS_process_vm_readv, -1, BAD, 1, BAD, 1, 0);
  CALL("process_vm_writev", SYS_process_vm_writev, -1, BAD, 1, BAD, 1, 0);
  CALL("process_madvise", 440, -1, 0, 0, 0, 0);
  CALL("kcmp", SYS_kcmp, -1, -1, 0, 0, 0);
  CALL("pidfd_getfd", 438, -1, 0, 0);
  CALL("keyctl", SYS_keyctl, -1, 0, 0, 0, 0);
  CALL("add_key", SYS_add_key, BAD, 0, 0, 0, 0);
  CALL("request_key", SYS_request_key, BAD, 0, 0, 0);
  CALL("bpf", SYS_bpf, 9999, 0, 0);
  CALL("perf_event_open", SYS_perf_event_open, BAD, 0, -1, -1, 0);
  CALL("userfaultfd", SYS_userfaultfd, -1);
  CALL("io_uring_setup", 425, 0, 0);
  CALL("io_uring_enter", 426, -1, 0, 0, 0, 0, 0);
  CALL("io_uring_register", 427, -1, 0, 0, 0);
  CALL("mount", SYS_mount, BAD, BAD, BAD, 0, 0);
  CALL("umount2", SYS_umount2, BAD, 0);
  CALL("mount_setattr", 442, -1, 0, 0, 0, 0);
  CALL("move_mount", 429, -1, BAD, -1, BAD, 0);
  CALL("open_tree", 428, -1, BAD, 0);
  CALL("fsopen", 430, BAD, 0);
  CALL("fsconfig", 431, -1, 0, 0, 0, 0);
  CALL("fsmount", 432, -1, 0, 0);
  CALL("fspick", 433, -1, BAD, 0);
  CALL("unshare", SYS_unshare, 1);
  CALL("setns", SYS_setns, -1, 0);
  CALL("chroot", SYS_chroot, BAD);
  CALL("pivot_root", SYS_pivot_root, BAD, BAD);
  CALL("name_to_handle_at", SYS_name_to_handle_at, -1, BAD, BAD, BAD, 0);
  CALL("open_by_handle_at", SYS_open_by_handle_at, -1, BAD, 0);
  CALL("memfd_secret", 447, -1);
  CALL("splice", SYS_splice, -1, 0, -1, 0, 1, 0);
  CALL("tee", SYS_tee, -1, -1, 1, 0);
  CALL("vmsplice", SYS_vmsplice, -1, BAD, 1, 0);
  CALL("shmget", SYS_shmget, 0, 0, 0);
  CALL("shmat", SYS_shmat, -1, 0, 0);
  CALL("shmctl", SYS_shmctl, -1, 0, 0);
  CALL("shmdt", SYS_shmdt, 0);
  CALL("semget", SYS_semget, 0, -1, 0);
  CALL("semop", SYS_semop, -1, BAD, 1);
  CALL("semtimedop", SYS_semtimedop, -1, BAD, 1, 0);
  CALL("semctl", SYS_semctl, -1, 0, 0, 0);
  CALL("msgget", SYS_msgget, 1234567, 0);
  CALL("msgsnd", SYS_msgsnd, -1, BAD, 1, 0);
  CALL("msgrcv", SYS_msgrcv, -1, BAD, 1, 0, 0);
  CALL("msgctl", SYS_msgctl, -1, 0, 0);
  CALL("mq_open", SYS_mq_open, BAD, 0, 0, 0);
  CALL("mq_unlink", SYS_mq_unlink, BAD);
  CALL("mq_timedsend", SYS_mq_timedsend, -1, 0, 0, 0, 0);
  CALL("mq_timedreceive", SYS_mq_timedreceive, -1, 0, 0, 0, 0);
  CALL("mq_notify", SYS_mq_notify, -1, 0);
  CALL("mq_getsetattr", SYS_mq_getsetattr, -1, 0, 0);
  CALL("io_setup", SYS_io_setup, 0, BAD);
  CALL("io_submit", SYS_io_submit, 0, 1, BAD);
  CALL("io_getevents", SYS_io_getevents, 0, 0, 0, 0, 0);
  CALL("io_destroy", SYS_io_destroy, 0);
  CALL("fanotify_init", SYS_fanotify_init, -1, 0);
  CALL("fanotify_mark", SYS_fanotify_mark, -1, 0, 0, -1, 0);
  CALL("init_module", SYS_init_module, BAD, 0, BAD);
  CALL("finit_module", SYS_finit_module, -1, BAD, 0);
  CALL("delete_module", SYS_delete_module, BAD, 0);
  CALL("kexec_load", SYS_kexec_load, 0, 65535, BAD, 0);
  CALL("kexec_file_load", 320, -1, -1, 0, 0, -1);
  CALL("swapon", SYS_swapon, BAD, 0);
  CALL("swapoff", SYS_swapoff, BAD);
  CALL("reboot", SYS_reboot, 0, 0, 0, 0);
  CALL("clock_settime", SYS_clock_settime, 9999, BAD);
  CALL("settimeofday", SYS_settimeofday, BAD, 0);
  CALL("adjtimex", SYS_adjtimex, BAD);
  CALL("clock_adjtime", SYS_clock_adjtime, 9999, BAD);
  CALL("syslog", SYS_syslog, -1, 0, 0);
  CALL("quotactl", SYS_quotactl, -1, BAD, 0, 0);
  CALL("quotactl_fd", 443, -1, 0, 0, 0);
  CALL("acct", SYS_acct, BAD);
  CALL("statmount", 457, BAD, 0, 0, 0);
  CALL("listmount", 458, BAD, 0, 0, 0);
  CALL("sethostname", SYS_sethostname, BAD, -1);
  CALL("setdomainname", SYS_setdomainname, BAD, -1);
  CALL("seccomp", SYS_seccomp, -1, 0, 0);
  CALL("landlock_create_ruleset", 444, BAD, 1, 0);
  CALL("move_pages", SYS_move_pages, -1, 0, 0, 0, 0, 0);
  CALL("migrate_pages", SYS_migrate_pages, -1, 0, 0, 0);
  CALL("mbind", SYS_mbind, 1, 1, -1, 0, 0, -1);
  CALL("set_mempolicy", SYS_set_mempolicy, -1, 0, 0);
  CALL("get_mempolicy", SYS_get_mempolicy, 0, 0, 0, 0, -1);
  CALL("sched_setscheduler", SYS_sched_setscheduler, -1, -1, 0);
  CALL("sched_setparam", SYS_sched_setparam, -1, 0);
  CALL("sched_setattr", SYS_sched_setattr, -1, 0, 0);
  CALL("ioprio_set", SYS_ioprio_set, -1, -1, 0);
  CALL("setfsuid", SYS_setfsuid, -1);
  CALL("setfsgid", SYS_setfsgid, -1);
  CALL("setgroups", SYS_setgroups, -1, 0);
  CALL("capset", SYS_capset, BAD, 0);
  CALL("clone3", 435, 0, 0);
  CALL("openat2", 437, -1, BAD, 0, 0);
  CALL("prctl_set_seccomp", SYS_prctl, 22, -1, 0, 0, 0);
  CALL("prctl_capbset_drop", SYS_prctl, 24, 9999, 0, 0, 0);
  CALL("prctl_set_securebits", SYS_prctl, 28, -1, 0, 0, 0);
  CALL("prctl_set_mm", SYS_prctl, 35, -1, 0, 0, 0);
#ifdef __x86_64__
  CALL("modify_ldt", SYS_modify_ldt, 0, 0, 0);
  CALL("iopl", SYS_iopl, 9);
  CALL("ioperm", SYS_ioperm, 65536, 1, 0);
  CALL("ustat", SYS_ustat, 0, BAD);
  CALL("sysfs", SYS_sysfs, 9999);
#endif
  CALL("personality_no_random", SYS_personality, 0x0040000);
  int null = open("/dev/null", O_RDWR);
  CALL("ioctl_tiocsti", SYS_ioctl, null, TIOCSTI, "x");
  CALL("ioctl_tioclinux", SYS_ioctl, null, 0x541C, "x");
  CALL("ioctl_fs_setflags", SYS_ioctl, null, 0x40086602, BAD);
  CALL("ioctl_usbdevfs", SYS_ioctl, null, 0x5514, BAD);
}

/* In the current folder. */
static void modes(void) {
  close(open("own", O_CREAT | O_RDWR, 0755));
  CALL("chmod_setuid", SYS_chmod, "own", 04755);
  CALL("chmod_setgid", SYS_chmod, "own", 02755);
  CALL("fchmodat_setuid", SYS_fchmodat, AT_FDCWD, "own", 04755);
  int own = open("own", O_RDWR);
  CALL("fchmod_setuid", SYS_fchmod, own, 04755);
  CALL("open_setuid", SYS_open, "suid1", O_CREAT | O_RDWR, 04755);
  CALL("openat_setuid", SYS_openat, AT_FDCWD, "suid2", O_CREAT | O_RDWR, 04755);
  CALL("openat_tmpfile_setuid", SYS_openat, AT_FDCWD, ".", O_TMPFILE | O_RDWR, 04755);
  CALL("creat_setuid", SYS_creat, "suid3", 04755);
  CALL("mknod_whiteout", SYS_mknod, "whiteout", S_IFCHR | 0644, 0);
  CALL("mknod_block", SYS_mknodat, AT_FDCWD, "block", S_IFBLK | 0644, 0x700);
}

/* What ordinary programs need must go on working; also in the current folder. */
static void needed(void) {
  CALL("chmod", SYS_chmod, "own", 0700);
  CALL("mkfifo", SYS_mknod, "fifo", S_IFIFO | 0644, 0);
  CALL("open_create", SYS_open, "plain", O_CREAT | O_RDWR, 0644);
  CALL("memfd_create", SYS_memfd_create, "m", 0);
  CALL("personality_query", SYS_personality, 0xffffffff);
  int ends[2];
  CALL("socketpair", SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, ends);
}

static void *nothing(void *argument) { return argument; }

static void threads(void) {
  pthread_t thread;
  errno = pthread_create(&thread, 0, nothing, 0);
  say("thread", errno ? -1 : 0);
  if (!errno) pthread_join(thread, 0);
}

static void sockets(void) {
  int protocols[] = {0, 1, 6, 17, 132, 136, 255, 262};
  for (int family = 0; family < 47; family++)
    for (int type = 1; type < 11; type++)
      for (unsigned i = 0; i < sizeof protocols / sizeof *protocols; i++) {
        int fd = socket(family, type, protocols[i]);
        if (fd >= 0) printf("socket_%d_%d_%d 0\n", family, type, protocols[i]), close(fd);
      }
  for (int protocol = 1; protocol < 24; protocol++) {
    int fd = socket(AF_NETLINK, SOCK_RAW, protocol);
    if (fd >= 0) printf("netlink_%d 0\n", protocol), close(fd);
  }
}

/* A call through the 32-bit entry: "getpid". Its signal if it killed the child. */
static void other_architecture(void) {
#ifdef __x86_64__
  pid_t child = fork();
  if (child == 0) {
    long result = 20;
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
    _exit(result > 0 ? 0 : 1);
  }
  int status;
  waitpid(child, &status, 0);
  printf("int80 %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
  child = fork();
  if (child == 0) {
    syscall(0x40000000 + SYS_getpid);
    _exit(0);
  }
  waitpid(child, &status, 0);
  printf("x32 %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
#endif
}

/* Where programs want to reach: outside by every way that a libc has, and inside, which is nobody's business. */
static void reach(void) {
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(443)};
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(853)};
  struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/none"};
  inet_pton(AF_INET, "1.1.1.1", &four.sin_addr);
  inet_pton(AF_INET6, "2606:4700::1111", &six.sin6_addr);
  CALL("tcp4", SYS_connect, socket(AF_INET, SOCK_STREAM, 0), &four, sizeof four);
  CALL("tcp6", SYS_connect, socket(AF_INET6, SOCK_STREAM, 0), &six, sizeof six);
  inet_pton(AF_INET, "169.254.169.254", &four.sin_addr);
  CALL("udp4", SYS_sendto, socket(AF_INET, SOCK_DGRAM, 0), "x", 1, 0, &four, sizeof four);
  inet_pton(AF_INET6, "::ffff:8.8.8.8", &six.sin6_addr);
  CALL("mapped", SYS_connect, socket(AF_INET6, SOCK_DGRAM, 0), &six, sizeof six);
  inet_pton(AF_INET, "127.0.0.1", &four.sin_addr);
  CALL("loopback", SYS_connect, socket(AF_INET, SOCK_STREAM, 0), &four, sizeof four);
  CALL("unix", SYS_connect, socket(AF_UNIX, SOCK_STREAM, 0), &path, sizeof path);
  CALL("unix16", SYS_connect, socket(AF_UNIX, SOCK_STREAM, 0), &path, 16);
  CALL("nowhere", SYS_connect, socket(AF_INET, SOCK_STREAM, 0), BAD, 16);
  int ends[2];
  CALL("pair", SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, ends);
  say("send", send(ends[0], "x", 1, 0));
}

/* Every call by its number, each in a process of its own, with arguments that no call can use, or with those of the most
   ordinary form of a call that filters look into. Prints the error; 1000 and more: ended by that signal. */
static void ordinary(long number, long *with) {
  struct { long number, with[3]; } all[] = {
      {SYS_clone, {SIGCHLD, 0, 0}},      {SYS_socket, {AF_UNIX, SOCK_STREAM, 0}},
      {SYS_ioctl, {-1, TCGETS, 0}},      {SYS_prctl, {3, 0, 0}},
      {SYS_personality, {0xffffffff}},   {SYS_openat, {-1, 1, O_RDONLY}},
      {SYS_mknodat, {-1, 1, S_IFREG}},   {SYS_fchmod, {-1, 0}},
      {SYS_connect, {0x7fffffff, 1, 0}}, {SYS_sendto, {0x7fffffff, 1, 0}},
      {SYS_fchmodat, {-1, 1, 0}},        {452 /* fchmodat2 */, {-1, 1, 0}},
#ifdef __x86_64__
      {SYS_open, {1, O_RDONLY, 0}},      {SYS_mknod, {1, S_IFREG, 0}},
      {SYS_chmod, {1, 0}},               {SYS_creat, {1, 0}},
#endif
  };
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
    if (all[i].number == number) memset(with, 0, 6 * sizeof *with), memcpy(with, all[i].with, sizeof all[i].with);
}

static void numbers(void) {
  for (long number = 0; number < 480; number++) {
    pid_t child = fork();
    if (child == 0) {
      long with[6] = {-1, -1, -1, -1, -1, -1};
      ordinary(number, with);
      alarm(2);
      errno = 0;
      long result = syscall(number, with[0], with[1], with[2], with[3], with[4], with[5]);
      _exit(result == -1 ? errno : 0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("%ld %d\n", number, WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status));
    fflush(stdout);
  }
}

/* A kernel that sends: 0 if a packet to this address would leave. */
static void leaves(const char *to) {
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(80)};
  inet_pton(AF_INET, to, &four.sin_addr);
  int tcp = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  long result = connect(tcp, (struct sockaddr *)&four, sizeof four);
  if (result == -1 && (errno == EINPROGRESS || errno == ECONNREFUSED)) result = 0;
  say("leaves", result);
}

static void flood(long times) {
  while (times--) syscall(SYS_bpf, 9999, 0, 0);
}

/* What reaches the sandbox's first process, which is the same user's. */
static void first(void) {
  struct rlimit none = {0, 0}, there;
  unsigned long one = 1;
  CALL("prlimit64_own", SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &there);
  CALL("prlimit64", SYS_prlimit64, 1, RLIMIT_NOFILE, &none, 0);
  CALL("prlimit64_read", SYS_prlimit64, 1, RLIMIT_NOFILE, 0, &there);
  CALL("setpriority_own", SYS_setpriority, PRIO_PROCESS, 0, 1);
  CALL("setpriority", SYS_setpriority, PRIO_PROCESS, 1, 19);
  CALL("setpriority_group", SYS_setpriority, PRIO_PGRP, 1, 19);
  CALL("setpriority_user", SYS_setpriority, PRIO_USER, 0, 19);
  CALL("sched_setaffinity_own", SYS_sched_setaffinity, 0, sizeof one, &one);
  CALL("sched_setaffinity", SYS_sched_setaffinity, 1, sizeof one, &one);
  CALL("sched_setscheduler", SYS_sched_setscheduler, 1, SCHED_BATCH, &(struct sched_param){0});
  CALL("sched_setparam", SYS_sched_setparam, 1, &(struct sched_param){0});
  CALL("sched_setattr", SYS_sched_setattr, 1, 0, 0);
  CALL("ioprio_set", SYS_ioprio_set, 1, 1, 3 << 13);
  CALL("move_pages", SYS_move_pages, 1, 0, 0, 0, 0, 0);
  CALL("migrate_pages", SYS_migrate_pages, 1, 0, 0, 0);
  CALL("process_vm_readv", SYS_process_vm_readv, 1, 0, 0, 0, 0, 0);
  CALL("ptrace", SYS_ptrace, PTRACE_SEIZE, 1, 0, 0);
  static const char *files[] = {"oom_score_adj", "timerslack_ns", "coredump_filter", "clear_refs", "attr/current",
                                "comm",          "mem",           "autogroup",       "sched",      "uid_map"};
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/1/%s", files[i]);
    errno = 0;
    int file = open(path, O_WRONLY);
    say(files[i], file < 0 ? -1 : write(file, "1", 1));
  }
  static const char *readable[] = {"fd/0", "environ", "maps", "cwd/.", "root/.", "map_files/.", "exe"};
  for (unsigned i = 0; i < sizeof readable / sizeof *readable; i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/1/%s", readable[i]);
    errno = 0;
    say(readable[i], open(path, O_RDONLY));
  }
  for (int number = 1; number <= SIGRTMAX; number++) {
    union sigval value = {0};
    kill(1, number);
    syscall(SYS_tgkill, 1, 1, number);
    sigqueue(1, number, value);
    int pipes[2];
    if (!pipe(pipes)) {
      fcntl(pipes[0], F_SETOWN, 1);
      fcntl(pipes[0], F_SETSIG, number);
      fcntl(pipes[0], F_SETFL, O_ASYNC);
      if (write(pipes[1], "x", 1)) close(pipes[0]);
      close(pipes[1]);
    }
  }
}

/* So many processes that call clone3, which is expected and so no alarm, for as long as they live. */
static void crowd(long processes) {
  while (processes--)
    if (!fork())
      for (;;) syscall(435, 0, 0);
}

/* So many processes whose children make a forbidden call and are killed at once, for as long as they live. */
static void churn(long processes) {
  while (processes--)
    if (!fork())
      for (;;) {
        pid_t child = fork();
        if (!child) {
          syscall(SYS_bpf, 9999, 0, 0);
          _exit(0);
        }
        kill(child, SIGKILL);
        waitpid(child, 0, 0);
      }
}

/* Forbidden calls by children that are killed while they wait for an answer. */
static void killed(void) {
  static const long numbers[] = {SYS_bpf, SYS_mount, SYS_keyctl, SYS_setns, SYS_swapon, SYS_reboot, SYS_acct,
                                 SYS_chroot, SYS_kcmp, SYS_unshare};
  for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    pid_t child = fork();
    if (!child) {
      syscall(numbers[i], -1, 0, 0, 0, 0, 0);
      _exit(0);
    }
    usleep(200000);
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
  }
}

static void timed(const char *name, long times, long number, long a, long b, long c) {
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (long i = 0; i < times; i++) syscall(number, a, b, c, 0, 0, 0);
  clock_gettime(CLOCK_MONOTONIC, &to);
  printf("%s %ld\n", name, ((to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec - from.tv_nsec) / times);
}

/* Nanoseconds a call. */
static void costs(void) {
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(1)};
  inet_pton(AF_INET, "127.0.0.1", &four.sin_addr);
  int tcp = socket(AF_INET, SOCK_STREAM, 0);
  timed("getppid", 1000000, SYS_getppid, 0, 0, 0);
  timed("openat_bad", 200000, SYS_openat, -1, (long)"none", 0);
  timed("sendto_bad", 200000, SYS_sendto, -1, 0, 0);
  timed("bpf", 20000, SYS_bpf, 9999, 0, 0);
  timed("connect", 20000, SYS_connect, tcp, (long)&four, sizeof four);
}

int main(int count, char **words) {
  const char *what = count > 1 ? words[1] : "";
  if (!strcmp(what, "euid")) return printf("euid %d\n", geteuid()), 0;
  if (!strcmp(what, "calls")) calls(), namespaces(), modes();
  else if (!strcmp(what, "needed")) threads(), modes(), needed();
  else if (!strcmp(what, "sockets")) sockets();
  else if (!strcmp(what, "reach")) reach();
  else if (!strcmp(what, "numbers")) numbers();
  else if (!strcmp(what, "leaves")) leaves(words[2]);
  else if (!strcmp(what, "flood")) flood(atol(words[2]));
  else if (!strcmp(what, "first")) first();
  else if (!strcmp(what, "crowd")) crowd(atol(words[2]));
  else if (!strcmp(what, "churn")) churn(atol(words[2]));
  else if (!strcmp(what, "killed")) killed();
  else if (!strcmp(what, "costs")) costs();
  else if (!strcmp(what, "architecture")) other_architecture();
  else return 2;
  return 0;
}
