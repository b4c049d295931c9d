/* Programs with both taps and nothing else. `tapped` takes 20 bytes from the front, as if it had changed the packet. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

#include "capture.h"

static __always_inline int tap(struct xdp_md *ctx, int taken)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > end)
		return XDP_ABORTED;
	/* An urgent packet is one that came before the captures began, and leaves after. */
	if (tg_capture_on() && !tcp->urg) {
		struct tg_capture_tuple packet = {
			.src.word = { 0, 0, bpf_htonl(0xffff), ip->saddr },
			.dst.word = { 0, 0, bpf_htonl(0xffff), ip->daddr },
			.sport = tcp->source,
			.dport = tcp->dest,
			.proto = ip->protocol,
			.family = 4,
		};
		tg_capture_received(ctx, &packet);
	}
	bool is_dropped = tcp->rst;
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
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > end)
		return XDP_ABORTED;
	return tcp->rst ? XDP_DROP : XDP_TX;
}
