/* The traffic of the benchmarks: a TCP echo server, and a client that counts round trips or connections.
 *
 *   rr server PORT                          echo until killed, one process a connection burst, IPv4 and IPv6
 *   rr rr ADDRESS PORT SECONDS              one-byte round trips on one connection: prints count and p50, p99 in ns
 *   rr crr ADDRESS PORT SECONDS             connect, one byte there and back, close: prints the same
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void serve(int port)
{
	int on = 1, off = 0, listener = socket(AF_INET6, SOCK_STREAM, 0), poll = epoll_create1(0);
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, 4096))
		die("listen");
	struct epoll_event event = { .events = EPOLLIN, .data.fd = listener }, ready[64];
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int count = epoll_wait(poll, ready, 64, -1);
		for (int i = 0; i < count; i++) {
			char byte[64];
			int fd = ready[i].data.fd;
			if (fd == listener) {
				fd = accept(listener, 0, 0);
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
				event.data.fd = fd;
				epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			ssize_t got = read(fd, byte, sizeof(byte));
			if (got <= 0 || write(fd, byte, (size_t)got) != got)
				close(fd);
		}
	}
}

static int dial(const char *address, int port)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int on = 1, is_six = inet_pton(AF_INET6, address, &six.sin6_addr) == 1;
	if (!is_six)
		inet_pton(AF_INET, address, &four.sin_addr);
	int fd = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
	if (connect(fd, is_six ? (void *)&six : (void *)&four, is_six ? sizeof(six) : sizeof(four)))
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

static void echo(int fd)
{
	char byte = 'x';
	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		die("echo");
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "server"))
		serve(atoi(argv[2]));
	if (argc != 5) {
		fprintf(stderr, "usage: rr server PORT | rr|crr ADDRESS PORT SECONDS\n");
		return 2;
	}
	int connects = !strcmp(argv[1], "crr"), port = atoi(argv[3]);
	size_t room = 1 << 22, count = 0;
	uint64_t *taken = malloc(room * sizeof(*taken)), end = now_ns() + (uint64_t)(atof(argv[4]) * 1e9);
	int fd = connects ? -1 : dial(argv[2], port);
	while (now_ns() < end && count < room) {
		uint64_t begin = now_ns();
		if (connects)
			fd = dial(argv[2], port);
		echo(fd);
		if (connects)
			close(fd);
		taken[count++] = now_ns() - begin;
	}
	qsort(taken, count, sizeof(*taken), compare);
	printf("%zu %llu %llu\n", count, (unsigned long long)taken[count / 2], (unsigned long long)taken[count * 99 / 100]);
	return 0;
}
