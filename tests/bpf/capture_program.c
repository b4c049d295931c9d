/* Programs with both taps and nothing else. `tapped` takes 20 bytes from the front, as if it had changed the packet. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>

#include "capture.h"

/* The TCP header behind an IP header of fixed length, or nothing. */
static __always_inline struct tcphdr *find_tcp(struct xdp_md *ctx, bool *v6)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct tcphdr *tcp = data + ETH_HLEN + sizeof(struct iphdr);
	if ((void *)(tcp + 1) > end)
		return 0;
	*v6 = ethernet->h_proto == bpf_htons(ETH_P_IPV6);
	if (*v6)
		tcp = data + ETH_HLEN + sizeof(struct ipv6hdr);
	return (void *)(tcp + 1) > end ? 0 : tcp;
}

static __always_inline void receive(struct xdp_md *ctx, struct tcphdr *tcp, bool v6)
{
	struct tg_capture_tuple packet = { .sport = tcp->source, .dport = tcp->dest, .proto = IPPROTO_TCP, .family = v6 ? 6 : 4 };
	__be32 *before = (void *)tcp;
	if (v6) {
		__builtin_memcpy(&packet.src, before - 8, 16);
		__builtin_memcpy(&packet.dst, before - 4, 16);
	} else {
		packet.src.word[2] = packet.dst.word[2] = bpf_htonl(0xffff);
		packet.src.word[3] = before[-2];
		packet.dst.word[3] = before[-1];
	}
	tg_capture_received(ctx, &packet);
}

static __always_inline int tap(struct xdp_md *ctx, int taken)
{
	bool v6 = false;
	struct tcphdr *tcp = find_tcp(ctx, &v6);
	if (!tcp)
		return XDP_ABORTED;
	bool is_dropped = tcp->rst;
	/* An urgent packet is one that came before the captures began, and leaves after. */
	if (tg_capture_on() && !tcp->urg)
		receive(ctx, tcp, v6);
	if (taken && bpf_xdp_adjust_head(ctx, taken))
		return XDP_ABORTED;
	if (is_dropped)
		return XDP_DROP;
	tg_capture_sent(ctx, 7, 9);
	return XDP_TX;
}

int tapped(struct xdp_md *ctx)
{
	return tap(ctx, 20);
}

/* For measuring: repeated runs get the packet that the one before left. */
int in_place(struct xdp_md *ctx)
{
	return tap(ctx, 0);
}

int untapped(struct xdp_md *ctx)
{
	bool v6 = false;
	struct tcphdr *tcp = find_tcp(ctx, &v6);
	if (!tcp)
		return XDP_ABORTED;
	return tcp->rst ? XDP_DROP : XDP_TX;
}
