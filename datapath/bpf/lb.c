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
		return lb_send_back(ctx, p, v6);
	}
	if (p->kind == LB_ECHO)
		return lb_answer_echo(ctx, p, v6);
	if (address->flags & TG_VIP_PASS)
		return LB_PASS(NO_FRONTEND);
	return p->kind == LB_FRAGMENT ? LB_DROP(FRAGMENT) : LB_DROP(NO_FRONTEND);
}

static __always_inline int lb_balance(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	bool is_plain = !p->tag[0] && p->kind == LB_PORTS && !p->is_first_fragment && p->l4 == p->l3 + (v6 ? 40 : 20);
	/* The plain packets keep their registers, unless the recorder, too, would be verified for each way that leads here. */
	if (!is_plain || tg_capture_on()) {
		if (lb_forget(p))
			return LB_DROP(REWRITE);
		if (p->kind == LB_FRAGMENT && lb_follow_fragment(p, v6) == 0) {
			p->kind = LB_PORTS;
			p->is_later_fragment = true;
		}
		if (tg_capture_on())
			lb_capture_received(ctx, p, v6);
	}
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
	struct tg_backend *backend = lb_choose(p, v6, number, service, &id, &is_new);
	if (!backend)
		return LB_DROP(NO_BACKEND);
	if (tg_capture_on())
		tg_capture_chosen(id);
	struct tg_hop *hop = tg_hop.lookup(&id);
	if (!hop)
		return LB_DROP(NO_BACKEND);
	__u32 refused = lb_refresh_hop(ctx, backend, hop);
	if (refused)
		return lb_exit(XDP_DROP, refused);
	if (p->ttl <= 1)
		return lb_answer_error(ctx, p, v6, LB_EXPIRED, 0);
	bool outer_v6 = backend->addr.word[0] != 0; /* no unicast IPv6 address begins with four zero bytes, mapped ones do */
	bool translates = service->flags & TG_SERVICE_DNAT;
	__u32 header = translates ? 0 : outer_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (p->length + header > hop->mtu)
		return lb_answer_error(ctx, p, v6, LB_TOO_BIG, hop->mtu - header);
	if (translates && p->kind == LB_ERROR)
		return LB_DROP(DNAT_ERROR);
	if (lb_take_hop(ctx, p, v6))
		return LB_DROP(MALFORMED);
	lb_count(p, number, hop, is_new);
	if (translates)
		return lb_send_translated(ctx, p, v6, backend, id, hop);
	if ((service->flags & TG_SERVICE_INNER_PORT) && p->kind == LB_PORTS && lb_set_inner_port(ctx, p, v6, backend->port))
		return LB_DROP(MALFORMED);
	if (outer_v6)
		return lb_encapsulate(ctx, p, v6, service, backend, hop, true);
	return lb_encapsulate(ctx, p, v6, service, backend, hop, false);
}

static __always_inline int lb_handle(struct xdp_md *ctx)
{
	union lb_flow flow;
	struct lb_packet packet, *p = &packet;
	p->flow = &flow;
	__be16 proto = 0;
	if (lb_parse_ethernet(ctx, p, &proto) != LB_PARSED)
		return LB_PASS(NOT_IP);
	if (proto == bpf_htons(ETH_P_IP)) {
		if (lb_parse_ipv4(ctx, p) != LB_PARSED)
			return LB_DROP(MALFORMED);
		return lb_balance(ctx, p, false);
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		if (lb_parse_ipv6(ctx, p) != LB_PARSED)
			return LB_DROP(MALFORMED);
		return lb_balance(ctx, p, true);
	}
	return LB_PASS(NOT_IP);
}

int lb(struct xdp_md *ctx)
{
	int left = lb_handle(ctx);
	if (tg_capture_on())
		tg_capture_sent(ctx, LB_VERDICT(left), LB_REASON(left));
	return LB_VERDICT(left);
}
