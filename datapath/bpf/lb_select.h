/* Which backend a packet goes to: the flow table first, then the client's affinity, then the service's table. */
#ifndef LB_SELECT_H
#define LB_SELECT_H

#include "lb_parse.h"

#define LB_SECOND_SHIFT 30
#define LB_UDP_IDLE_S 28 /* in lb_seconds(), 30 s: a UDP flow that was silent for longer begins anew */

/* Close to seconds, without a division. */
static __always_inline __u32 lb_seconds(void)
{
	return tg_now() >> LB_SECOND_SHIFT;
}

static __always_inline struct tg_vip *lb_find_vip(const struct lb_packet *p, bool v6)
{
	return v6 ? tg_vip6.lookup((struct tg_vip6_key *)p->flow) : tg_vip4.lookup((struct tg_vip4_key *)p->flow);
}

/* The entry of the address itself. */
static __always_inline struct tg_vip *lb_find_address(const struct lb_packet *p, bool v6)
{
	if (v6) {
		struct tg_vip6_key key = { .addr = p->flow->v6.daddr };
		return tg_vip6.lookup(&key);
	}
	struct tg_vip4_key key = { .addr = p->flow->v4.daddr };
	return tg_vip4.lookup(&key);
}

/* Give a later fragment the ports of its first one, or remember those of a first one. */
static __always_inline int lb_follow_fragment(struct lb_packet *p, bool v6)
{
	struct tg_frag_key key = { .id = p->frag_id, .proto = p->proto };
	if (v6) {
		key.src = p->flow->v6.saddr;
		key.dst = p->flow->v6.daddr;
	} else {
		tg_map_ipv4(&key.src, p->flow->v4.saddr);
		tg_map_ipv4(&key.dst, p->flow->v4.daddr);
	}
	if (p->is_first_fragment) {
		struct tg_frag ports;
		*(__u32 *)&ports = p->ports;
		tg_lb_frag.update(&key, &ports);
		return 0;
	}
	struct tg_frag *ports = tg_lb_frag.lookup(&key);
	if (!ports)
		return -1;
	lb_set_ports(p, v6, *(__u32 *)ports);
	return 0;
}

static __always_inline bool lb_is_allowed(const struct lb_packet *p, bool v6, __u32 number)
{
	struct tg_lb_ranges_key key = { .prefixlen = 160, .service = number };
	if (v6)
		key.addr = p->flow->v6.saddr;
	else
		tg_map_ipv4(&key.addr, p->flow->v4.saddr);
	struct tg_lb_range *range = tg_lb_ranges.lookup(&key);
	return range && range->allow;
}

#define lb_rotate(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))

/* Bob Jenkins's lookup3 (public domain, 2006) over the client's side of the flow. The destination address is left out, so that
 * the frontends of both families and of several addresses share out alike. */
static __always_inline __u32 lb_mix(__u32 a, __u32 b, __u32 c)
{
	c ^= b;
	c -= lb_rotate(b, 14);
	a ^= c;
	a -= lb_rotate(c, 11);
	b ^= a;
	b -= lb_rotate(a, 25);
	c ^= b;
	c -= lb_rotate(b, 16);
	a ^= c;
	a -= lb_rotate(c, 4);
	b ^= a;
	b -= lb_rotate(a, 14);
	c ^= b;
	c -= lb_rotate(b, 24);
	return c;
}

#define LB_HASH_BEGIN 0xdeadbeef

static __always_inline __u32 lb_hash(const struct lb_packet *p, bool v6, __u32 seed, bool affinity)
{
	__u32 begin = LB_HASH_BEGIN + seed;
	__u32 ports = p->ports;
	if (affinity)
		ports = lb_word(0, lb_second(ports));
	if (!v6)
		return lb_mix(begin + p->flow->v4.saddr, begin + ports, begin + p->proto);
	const __be32 *word = p->flow->v6.saddr.word;
	__u32 first = lb_mix(begin + word[0], begin + word[1], begin + word[2]);
	return lb_mix(first + word[3], begin + ports, begin + p->proto);
}

/* Read what a hash gives in a table: offset and size as they follow each other, in one load, since the agent may change both at
 * any time. The slot is found by multiplication: as even as a remainder, without the division. */
static __always_inline __u32 lb_read_slot(const __u32 *table, __u32 hash)
{
	__u64 both = *(const volatile __u64 *)table;
	__u32 slot = (__u64)hash * lb_pair_second(both) >> 32;
	__u32 pair = (lb_pair_first(both) + slot) >> 1;
	struct tg_slots *slots = tg_slots.lookup(&pair);
	if (!slots)
		return 0;
	return slot & 1 ? slots->backend[1] : slots->backend[0];
}

static __always_inline struct tg_backend *lb_find_backend(__u32 id)
{
	struct tg_backend *backend = tg_backend.lookup(&id);
	return backend && backend->born ? backend : 0;
}

/* From the table as it was before the last change. */
static __always_inline struct tg_backend *lb_choose_before(const struct lb_packet *p, bool v6, const struct tg_service *service,
							   __u32 flags, __u32 *id)
{
	__u32 hash = lb_hash(p, v6, service->before_seed, flags & TG_SERVICE_AFFINITY);
	*id = lb_read_slot(&service->before_offset, hash);
	return lb_find_backend(*id);
}

static __always_inline struct tg_backend *lb_choose_now(const struct lb_packet *p, bool v6, const struct tg_service *service,
							__u32 flags, __u32 *id)
{
	__u32 hash;
	if (flags & TG_SERVICE_RANDOM)
		hash = bpf_get_prandom_u32();
	else
		hash = lb_hash(p, v6, service->seed, flags & TG_SERVICE_AFFINITY);
	*id = lb_read_slot(&service->offset, hash);
	return lb_find_backend(*id);
}

/* The backend that this client had before, or one that it will have from now on. */
static __always_inline struct tg_backend *lb_choose_affine(const struct lb_packet *p, bool v6, __u32 number,
							   const struct tg_service *service, __u32 flags, __u32 *id)
{
	__u32 now_s = lb_seconds();
	struct tg_lb_affinity_key key = { .service = number };
	if (v6)
		key.addr = p->flow->v6.saddr;
	else
		tg_map_ipv4(&key.addr, p->flow->v4.saddr);
	struct tg_lb_affinity *known = tg_lb_affinity.lookup(&key);
	if (known && now_s - known->seen_s <= service->affinity_s) {
		*id = known->backend;
		struct tg_backend *backend = lb_find_backend(*id);
		if (backend && backend->born == known->born) {
			known->seen_s = now_s;
			return backend;
		}
	}
	struct tg_backend *backend = lb_choose_now(p, v6, service, flags, id);
	if (backend) {
		struct tg_lb_affinity entry = { .backend = *id, .born = backend->born, .seen_s = now_s };
		tg_lb_affinity.update(&key, &entry);
	}
	return backend;
}

static __always_inline struct tg_lb_flow *lb_find_flow(struct lb_packet *p, bool v6)
{
	return v6 ? tg_lb_flow6.lookup(&p->flow->v6) : tg_lb_flow4.lookup(&p->flow->v4);
}

static __always_inline void lb_remember(struct lb_packet *p, bool v6, __u32 id, __u32 born, __u32 now_s)
{
	struct tg_lb_flow flow = { .backend = id, .born = born, .seen_s = now_s };
	if (v6)
		tg_lb_flow6.update(&p->flow->v6, &flow);
	else
		tg_lb_flow4.update(&p->flow->v4, &flow);
}

/* Find the packet's backend and its id; `is_new` says that the flow table shall learn it. `flags` are the service's, as far as
 * they can be met here. Returns 0 if there is none. */
static __always_inline struct tg_backend *lb_choose(struct lb_packet *p, bool v6, __u32 number, const struct tg_service *service,
						    __u32 flags, __u32 *id, bool *is_new)
{
	struct tg_backend *backend = 0;
	bool is_tcp = p->proto == IPPROTO_TCP;
	bool opens = is_tcp && (p->tcp_flags & (LB_TCP_SYN | LB_TCP_ACK)) == LB_TCP_SYN;
	bool keeps = !(flags & TG_SERVICE_STATELESS);
	struct tg_lb_flow *flow = keeps && !opens ? lb_find_flow(p, v6) : 0;
	if (flow) {
		*id = flow->backend;
		backend = lb_find_backend(*id);
		if (backend && backend->born == flow->born) {
			if (is_tcp)
				return backend;
			__u32 now_s = lb_seconds();
			__u32 silent_s = now_s - flow->seen_s;
			if (silent_s <= LB_UDP_IDLE_S) {
				if (silent_s)
					flow->seen_s = now_s;
				return backend;
			}
		}
		backend = 0;
	}
	if (is_tcp && !opens && service->before_until && tg_now() < service->before_until)
		backend = lb_choose_before(p, v6, service, flags, id);
	if (!backend) {
		if (flags & TG_SERVICE_AFFINITY)
			backend = lb_choose_affine(p, v6, number, service, flags, id);
		else
			backend = lb_choose_now(p, v6, service, flags, id);
	}
	*is_new = keeps && p->kind != LB_ERROR;
	return backend;
}

#endif
