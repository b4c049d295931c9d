// The CNI plugin: carries one call to the agent's socket and prints the agent's answer. It decides nothing itself.
//
// Request:  8 hex digits of length, then NAME=value and NUL for each CNI_ variable, one more NUL, the configuration.
// Answer:   '0' or '1' (the exit status), 8 hex digits of length, JSON for standard output.
// The socket's path is the first line of the file named like this executable with ".socket" added.
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX = 1 << 20, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50, CONNECT_MS = 5000, ANSWER_MS = 60000 };

// Found in the file by whoever must tell our plugin from another of the same name.
__attribute__((used)) static const char marker[] = "tidegate-cni-plugin";
static const char *const names[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"};
static char request[MAX + 16], answer[MAX + 16], version[16] = "1.0.0";

static int is_command(const char *name)
{
	const char *command = getenv("CNI_COMMAND");
	return command && !strcmp(command, name);
}

static int fail(const char *details)
{
	int code = is_command("STATUS") ? NOT_AVAILABLE : TRY_AGAIN_LATER;
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"the Tidegate agent of this node does not answer\","
	       "\"details\":\"%s\"}\n", version, code, details);
	return 1;
}

// Answers carry the version of the request. A value is all that is needed of the JSON, so it is not parsed.
static void find_version(const char *config)
{
	const char *at = strstr(config, "\"cniVersion\"");
	if (!at)
		return;
	at += strlen("\"cniVersion\"");
	at += strspn(at, " \t\r\n:");
	size_t length = *at == '"' ? strspn(at + 1, "0123456789.") : 0;
	if (length > 0 && length < sizeof(version) && at[1 + length] == '"') {
		memcpy(version, at + 1, length);
		version[length] = 0;
	}
}

static long long now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

// Wait for the socket until a deadline; 0 means that the time is over.
static int ready(int fd, short events, long long deadline)
{
	struct pollfd wait = {.fd = fd, .events = events};
	long long left;
	while ((left = deadline - now_ms()) > 0) {
		int found = poll(&wait, 1, (int)left);
		if (found > 0)
			return 1;
		if (found < 0 && errno != EINTR)
			return 0;
	}
	return 0;
}

static int read_socket_path(char *path, size_t size)
{
	char file[4096];
	ssize_t length = readlink("/proc/self/exe", file, sizeof(file) - 8);
	if (length <= 0)
		return 0;
	strcpy(file + length, ".socket");
	FILE *stream = fopen(file, "re");
	if (!stream)
		return 0;
	int found = fgets(path, (int)size, stream) != NULL;
	fclose(stream);
	if (found)
		path[strcspn(path, "\n")] = 0;
	return found && *path;
}

// A full backlog (EAGAIN) and an agent that is being replaced (ECONNREFUSED, ENOENT) pass within moments.
static int connect_agent(const struct sockaddr_un *agent)
{
	long long deadline = now_ms() + (is_command("STATUS") ? 0 : CONNECT_MS);
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0 || !connect(fd, (const struct sockaddr *)agent, sizeof(*agent)))
			return fd;
		close(fd);
		if (now_ms() >= deadline)
			return -1;
		usleep(20000);
	}
}

static size_t build_request(void)
{
	size_t at = 8, got;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		const char *value = getenv(names[i]);
		if (value && at + strlen(names[i]) + strlen(value) + 3 < MAX)
			at += (size_t)sprintf(request + at, "%s=%s", names[i], value) + 1;
	}
	request[at++] = 0;
	char *config = request + at;
	while (at < MAX && (got = fread(request + at, 1, MAX - at, stdin)) > 0)
		at += got;
	request[at] = 0;
	find_version(config);
	char length[9];
	sprintf(length, "%08zx", at - 8);
	memcpy(request, length, 8);
	return at;
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	size_t size = build_request(), sent = 0, got = 0, wanted = 9;
	if (is_command("VERSION")) {
		printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n", version);
		return 0;
	}
	struct sockaddr_un agent = {.sun_family = AF_UNIX};
	if (!read_socket_path(agent.sun_path, sizeof(agent.sun_path)))
		return fail("the .socket file beside the plugin cannot be read");
	int fd = connect_agent(&agent);
	if (fd < 0)
		return fail("its socket does not accept connections");
	long long deadline = now_ms() + ANSWER_MS;
	while (sent < size) {
		ssize_t done = ready(fd, POLLOUT, deadline) ? write(fd, request + sent, size - sent) : -1;
		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return fail("the request could not be sent");
		sent += done > 0 ? (size_t)done : 0;
	}
	while (got < wanted) {
		errno = ETIMEDOUT;
		ssize_t done = ready(fd, POLLIN, deadline) ? read(fd, answer + got, wanted - got) : -1;
		if (done == 0 || (done < 0 && errno != EINTR && errno != EAGAIN))
			return fail(done && errno == ETIMEDOUT ? "no answer in time" : "it ended before it answered");
		got += done > 0 ? (size_t)done : 0;
		if (got == 9 && wanted == 9) {
			answer[9] = 0;
			unsigned long length = strtoul(answer + 1, NULL, 16);
			if (length > MAX)
				return fail("its answer is too long");
			wanted += length;
		}
	}
	fwrite(answer + 9, 1, wanted - 9, stdout);
	return fflush(stdout) || answer[0] != '0';
}
