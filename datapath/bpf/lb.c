/* The load balancer: XDP on an uplink. The order of the questions put to a packet. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#include "lb_nat.h"
#include "lb_plain.h"

/* Tap "received", for packets to a virtual address. */
static __always_inline void lb_capture_received(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	struct tg_capture_seen *seen = lb_capture_match(p, v6, p->flow);
	if (!seen)
		return;
	struct tg_vip *vip = 0;
	if (p->kind == LB_PORTS || p->kind == LB_ERROR)
		vip = lb_find_vip(p, v6);
	if (!vip && !lb_find_address(p, v6))
		return;
	seen->event.service = vip ? vip->service : 0;
	seen->event.backend = 0;
	tg_capture_received(ctx, seen);
}

static __always_inline void lb_count(const struct lb_packet *p, __u32 number, struct tg_hop *hop, bool is_new)
{
	struct tg_lb_count *count = tg_lb_count.lookup(&number);
	if (!count)
		return;
	count->packets++;
	count->bytes += p->length;
	hop->packets++;
	hop->bytes += p->length;
	if (is_new) {
		count->flows++;
		hop->flows++;
	}
}

/* A packet that no frontend takes. */
static __always_inline int lb_decline(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	struct tg_vip *address = lb_find_address(p, v6);
	if (!address) {
		if (p->kind != LB_PORTS || !lb_may_be_answer(p, v6))
			return LB_PASS(OTHER);
		if (p->is_first_fragment)
			lb_follow_fragment(p, v6);
		return lb_keep(p, v6) ? lb_leave(ctx, LB_DNAT_BACK) : LB_DROP(REWRITE);
	}
	if (p->kind == LB_ECHO)
		return lb_answer_echo(ctx, p, v6);
	if (address->flags & TG_VIP_PASS)
		return LB_PASS(NO_FRONTEND);
	return p->kind == LB_FRAGMENT ? LB_DROP(FRAGMENT) : LB_DROP(NO_FRONTEND);
}

/* A plain packet. Nothing is changed, or remembered, before it is sure that it is sent from here. */
static __always_inline int lb_balance_plain(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	struct tg_vip *vip = lb_find_vip(p, v6);
	if (!vip) {
		if (lb_find_address(p, v6) || lb_may_be_answer(p, v6))
			return lb_leave(ctx, LB_REST);
		return LB_PASS(OTHER);
	}
	__u32 number = vip->service;
	struct tg_service *service = tg_service.lookup(&number);
	if (!service)
		return LB_DROP(NO_BACKEND);
	__u32 flags = service->flags;
	if (flags & ~TG_SERVICE_STATELESS)
		return lb_leave(ctx, LB_REST);
	__u32 id = 0;
	bool is_new = false;
	struct tg_backend *backend = lb_choose(p, v6, number, service, flags & TG_SERVICE_STATELESS, &id, &is_new);
	if (!backend)
		return LB_DROP(NO_BACKEND);
	struct tg_hop *hop = tg_hop.lookup(&id);
	if (!hop)
		return LB_DROP(NO_BACKEND);
	bool outer_v6 = backend->addr.word[0] != 0; /* no unicast IPv6 address begins with four zero bytes, mapped ones do */
	__u32 header = outer_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (!lb_is_hop_fresh(backend, hop) || p->length + header > hop->mtu)
		return lb_leave(ctx, LB_REST);
	if (is_new)
		lb_remember(p, v6, id, hop->born, hop->seen_s);
	lb_count(p, number, hop, is_new);
	if (outer_v6)
		return lb_encapsulate(ctx, p, v6, service, backend, hop, true, true);
	return lb_encapsulate(ctx, p, v6, service, backend, hop, false, true);
}

static __always_inline int lb_balance(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	if (p->kind == LB_FRAGMENT && lb_follow_fragment(p, v6) == 0) {
		p->kind = LB_PORTS;
		p->is_later_fragment = true;
	}
	if (tg_capture_on())
		lb_capture_received(ctx, p, v6);
	if (p->kind != LB_PORTS && p->kind != LB_ERROR)
		return lb_decline(ctx, p, v6);
	struct tg_vip *vip = lb_find_vip(p, v6);
	if (!vip)
		return lb_decline(ctx, p, v6);
	__u32 number = vip->service;
	struct tg_service *service = tg_service.lookup(&number);
	if (!service)
		return LB_DROP(NO_BACKEND);
	if (p->is_first_fragment)
		lb_follow_fragment(p, v6);
	if ((service->flags & TG_SERVICE_RANGES) && !lb_is_allowed(p, v6, number))
		return LB_DROP(SOURCE_RANGE);
	__u32 id = 0;
	bool is_new = false;
	struct tg_backend *backend = lb_choose(p, v6, number, service, service->flags, &id, &is_new);
	if (!backend)
		return LB_DROP(NO_BACKEND);
	if (is_new)
		lb_remember(p, v6, id, backend->born, lb_seconds());
	if (tg_capture_on())
		tg_capture_chosen(id);
	struct tg_hop *hop = tg_hop.lookup(&id);
	if (!hop)
		return LB_DROP(NO_BACKEND);
	bool translates = service->flags & TG_SERVICE_DNAT;
	__u32 refused = lb_refresh_hop(ctx, backend, hop, translates);
	if (refused)
		return lb_exit(XDP_DROP, refused);
	if (p->ttl <= 1)
		return lb_leave_error(ctx, p, v6, LB_EXPIRED, 0);
	bool outer_v6 = backend->addr.word[0] != 0; /* no unicast IPv6 address begins with four zero bytes, mapped ones do */
	__u32 header = translates ? 0 : outer_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (p->length + header > hop->mtu)
		return lb_leave_error(ctx, p, v6, LB_TOO_BIG, hop->mtu - header);
	if (translates && p->kind == LB_ERROR)
		return LB_DROP(DNAT_ERROR);
	lb_count(p, number, hop, is_new);
	if (translates) {
		struct lb_kept *kept = lb_keep(p, v6);
		if (!kept)
			return LB_DROP(REWRITE);
		kept->backend = id;
		return lb_leave(ctx, LB_DNAT);
	}
	if ((service->flags & TG_SERVICE_INNER_PORT) && p->kind == LB_PORTS && lb_set_inner_port(ctx, p, v6, backend->port))
		return LB_DROP(MALFORMED);
	if (outer_v6)
		return lb_encapsulate(ctx, p, v6, service, backend, hop, true, false);
	return lb_encapsulate(ctx, p, v6, service, backend, hop, false, false);
}

/* Every program ends here: the recorder is told what became of the packet. */
static __always_inline int lb_end(struct xdp_md *ctx, int left)
{
	if (tg_capture_on())
		tg_capture_sent(ctx, LB_VERDICT(left), LB_REASON(left));
	return LB_VERDICT(left);
}

static __always_inline int lb_begin(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	union lb_flow flow;
	struct lb_packet packet, *p = &packet;
	p->flow = &flow;
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return LB_PASS(NOT_IP);
	/* Plain packets, too, are left to the others while something is recorded: the fast way has no taps. */
	if (tg_capture_on())
		return lb_leave(ctx, LB_REST);
	if (eth->h_proto == bpf_htons(ETH_P_IP) && lb_parse_plain_ipv4(ctx, p) == 0)
		return lb_balance_plain(ctx, p, false);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6) && lb_parse_plain_ipv6(ctx, p) == 0)
		return lb_balance_plain(ctx, p, true);
	return lb_leave(ctx, LB_REST);
}

/* The program on the device. */
int lb(struct xdp_md *ctx)
{
	return LB_VERDICT(lb_begin(ctx));
}

/* What `lb` leaves: the packet is as it came, and is parsed anew. */
int lb_rest(struct xdp_md *ctx)
{
	union lb_flow flow = {};
	struct lb_packet packet = {}, *p = &packet;
	p->flow = &flow;
	__be16 proto = 0;
	if (lb_parse_ethernet(ctx, p, &proto) != LB_PARSED)
		return lb_end(ctx, LB_PASS(NOT_IP));
	if (proto != bpf_htons(ETH_P_IP) && proto != bpf_htons(ETH_P_IPV6))
		return lb_end(ctx, LB_PASS(NOT_IP));
	if (proto == bpf_htons(ETH_P_IP) ? lb_parse_ipv4(ctx, p) : lb_parse_ipv6(ctx, p))
		return lb_end(ctx, LB_DROP(MALFORMED));
	if (!lb_keep(p, proto == bpf_htons(ETH_P_IPV6)))
		return lb_end(ctx, LB_DROP(REWRITE));
	return lb_end(ctx, lb_leave(ctx, proto == bpf_htons(ETH_P_IP) ? LB_REST_IPV4 : LB_REST_IPV6));
}

int lb_rest_ipv4(struct xdp_md *ctx)
{
	union lb_flow flow;
	struct lb_packet packet;
	if (!lb_recall(&packet, &flow))
		return lb_end(ctx, LB_DROP(REWRITE));
	return lb_end(ctx, lb_balance(ctx, &packet, false));
}

int lb_rest_ipv6(struct xdp_md *ctx)
{
	union lb_flow flow;
	struct lb_packet packet;
	if (!lb_recall(&packet, &flow))
		return lb_end(ctx, LB_DROP(REWRITE));
	return lb_end(ctx, lb_balance(ctx, &packet, true));
}

int lb_error(struct xdp_md *ctx)
{
	union lb_flow flow;
	struct lb_packet packet;
	struct lb_kept *kept = lb_recall(&packet, &flow);
	if (!kept)
		return lb_end(ctx, LB_DROP(REWRITE));
	if (kept->v6)
		return lb_end(ctx, lb_answer_error(ctx, &packet, true, kept->why, kept->mtu));
	return lb_end(ctx, lb_answer_error(ctx, &packet, false, kept->why, kept->mtu));
}

int lb_dnat(struct xdp_md *ctx)
{
	union lb_flow flow;
	struct lb_packet packet;
	struct lb_kept *kept = lb_recall(&packet, &flow);
	if (!kept)
		return lb_end(ctx, LB_DROP(REWRITE));
	__u32 id = kept->backend;
	struct tg_backend *backend = lb_find_backend(id);
	struct tg_hop *hop = tg_hop.lookup(&id);
	if (!backend || !hop)
		return lb_end(ctx, LB_DROP(NO_BACKEND));
	if (kept->v6)
		return lb_end(ctx, lb_send_translated(ctx, &packet, true, backend, id, hop));
	return lb_end(ctx, lb_send_translated(ctx, &packet, false, backend, id, hop));
}

int lb_dnat_back(struct xdp_md *ctx)
{
	union lb_flow flow;
	struct lb_packet packet;
	struct lb_kept *kept = lb_recall(&packet, &flow);
	if (!kept)
		return lb_end(ctx, LB_DROP(REWRITE));
	if (kept->v6)
		return lb_end(ctx, lb_send_back(ctx, &packet, true));
	return lb_end(ctx, lb_send_back(ctx, &packet, false));
}
