/* The least that a balancer must do, to measure ours beside: parse, VIP hash, flow table, table, push a header, checksum, count.
 * And the harness: `again` makes the frame new before each run and jumps to the program under test, `nothing` is an empty one. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>

#define SLOTS 65537
#define FLOWS 65536

struct frame {
	__u8 bytes[64];
	__u32 length; /* of the whole frame */
	__u32 vary;   /* offset of a word that differs in each run; 0: none */
};

BPF_ARRAY(frame, struct frame, 1);
BPF_PERCPU_ARRAY(runs, __u64, 1);
BPF_PROG_ARRAY(tested, 1);

int again(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct frame *want = frame.lookup(&zero);
	__u64 *run = runs.lookup(&zero);
	if (!want || !run)
		return XDP_ABORTED;
	__u32 length = ctx->data_end - ctx->data;
	asm volatile("" : "+r"(length));
	if (bpf_xdp_adjust_head(ctx, (int)(length - want->length)))
		return XDP_ABORTED;
	void *data = (void *)(long)ctx->data;
	if (data + sizeof(want->bytes) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, want->bytes, sizeof(want->bytes));
	if (want->vary == 26)
		*(__u32 *)(data + 26) = (__u32)++*run * 2654435761u;
	if (want->vary == 34)
		*(__u32 *)(data + 34) = (__u32)++*run * 2654435761u;
	tested.call(ctx, 0);
	return XDP_ABORTED;
}

int nothing(struct xdp_md *ctx)
{
	return XDP_TX;
}

struct address {
	__be32 word[4];
};

struct flow4 {
	__be32 saddr, daddr;
	__be16 sport, dport;
	__u32 proto;
};

struct flow6 {
	struct address saddr, daddr;
	__be16 sport, dport;
	__u32 proto;
};

struct vip4 {
	__be32 addr;
	__be16 port, proto;
};

struct vip6 {
	struct address addr;
	__be16 port, proto;
};

struct real {
	struct address addr;
};

struct count {
	__u64 packets, bytes;
};

struct link {
	__be32 macs[3];
};

BPF_TABLE("hash", struct vip4, __u32, vips4, 64);
BPF_TABLE("hash", struct vip6, __u32, vips6, 64);
BPF_TABLE("lru_hash", struct flow4, __u32, flows4, FLOWS);
BPF_TABLE("lru_hash", struct flow6, __u32, flows6, FLOWS);
BPF_ARRAY(slots, __u32, SLOTS);
BPF_ARRAY(reals, struct real, 256);
BPF_ARRAY(next_hop, struct link, 1);
BPF_PERCPU_ARRAY(counts, struct count, 64);

#define rotate(word, bits) ((word) << (bits) | (word) >> (32 - (bits)))

static __always_inline __u32 mix(__u32 a, __u32 b, __u32 c)
{
	c ^= b; c -= rotate(b, 14);
	a ^= c; a -= rotate(c, 11);
	b ^= a; b -= rotate(a, 25);
	c ^= b; c -= rotate(b, 16);
	a ^= c; a -= rotate(c, 4);
	b ^= a; b -= rotate(a, 14);
	c ^= b; c -= rotate(b, 24);
	return c;
}

static __always_inline int balance(struct xdp_md *ctx, bool v6, bool outer_v6, bool keeps)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct tcphdr *tcp;
	struct flow4 flow4 = {};
	struct flow6 flow6 = {};
	__u32 length, spread, *vip;
	if ((void *)(eth + 1) > end || eth->h_proto != (v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP)))
		return XDP_PASS;
	if (v6) {
		struct ipv6hdr *ip = data + sizeof(*eth);
		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return XDP_PASS;
		length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		__builtin_memcpy(&flow6.saddr, &ip->saddr, 16);
		__builtin_memcpy(&flow6.daddr, &ip->daddr, 16);
		flow6.sport = tcp->source;
		flow6.dport = tcp->dest;
		flow6.proto = IPPROTO_TCP;
		spread = flow6.saddr.word[3] ^ flow6.sport;
		struct vip6 key = { .addr = flow6.daddr, .port = tcp->dest, .proto = IPPROTO_TCP };
		vip = vips6.lookup(&key);
	} else {
		struct iphdr *ip = data + sizeof(*eth);
		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end || ip->protocol != IPPROTO_TCP || ip->ihl != 5 || (ip->frag_off & bpf_htons(0x3fff)))
			return XDP_PASS;
		length = bpf_ntohs(ip->tot_len);
		flow4.saddr = ip->saddr;
		flow4.daddr = ip->daddr;
		flow4.sport = tcp->source;
		flow4.dport = tcp->dest;
		flow4.proto = IPPROTO_TCP;
		spread = ip->saddr ^ flow4.sport;
		struct vip4 key = { .addr = ip->daddr, .port = tcp->dest, .proto = IPPROTO_TCP };
		vip = vips4.lookup(&key);
	}
	if (!vip)
		return XDP_PASS;
	__u32 number = *vip, id, *known = 0;
	if (keeps && !tcp->syn)
		known = v6 ? flows6.lookup(&flow6) : flows4.lookup(&flow4);
	if (known) {
		id = *known;
	} else {
		__u32 hash;
		if (v6)
			hash = mix(mix(flow6.saddr.word[0], flow6.saddr.word[1], flow6.saddr.word[2]) + flow6.saddr.word[3],
				   (__u32)flow6.sport << 16 | flow6.dport, flow6.proto);
		else
			hash = mix(flow4.saddr, (__u32)flow4.sport << 16 | flow4.dport, flow4.proto);
		__u32 slot = (__u64)hash * SLOTS >> 32, *chosen = slots.lookup(&slot);
		if (!chosen)
			return XDP_DROP;
		id = *chosen;
		if (keeps && v6)
			flows6.update(&flow6, &id);
		else if (keeps)
			flows4.update(&flow4, &id);
	}
	__u32 zero = 0;
	struct real *real = reals.lookup(&id);
	struct link *hop = next_hop.lookup(&zero);
	struct count *count = counts.lookup(&number);
	if (!real || !hop || !count)
		return XDP_DROP;
	count->packets++;
	count->bytes += length;
	if (bpf_xdp_adjust_head(ctx, outer_v6 ? -40 : -20))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(*eth) + 40 > end)
		return XDP_DROP;
	__builtin_memcpy(data, hop->macs, 12);
	eth = data;
	if (outer_v6) {
		struct ipv6hdr *ip = data + sizeof(*eth);
		eth->h_proto = bpf_htons(ETH_P_IPV6);
		*(__be32 *)ip = bpf_htonl(0x60000000);
		ip->payload_len = bpf_htons(length);
		ip->nexthdr = v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
		ip->hop_limit = 64;
		__be32 *source = (void *)&ip->saddr;
		source[0] = bpf_htonl(0x01000000);
		source[1] = 0;
		source[2] = 0;
		source[3] = spread;
		__builtin_memcpy(&ip->daddr, &real->addr, 16);
	} else {
		struct iphdr *ip = data + sizeof(*eth);
		eth->h_proto = bpf_htons(ETH_P_IP);
		__be32 source = bpf_htonl(0xac100000) | (spread & bpf_htonl(0xffff)), to = real->addr.word[3];
		__u16 outer = length + sizeof(*ip);
		__u32 sum = bpf_htons(0x4500) + bpf_htons(outer) + bpf_htons(64 << 8 | IPPROTO_IPIP);
		sum += (source & 0xffff) + (source >> 16) + (to & 0xffff) + (to >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		*(__be16 *)ip = bpf_htons(0x4500);
		ip->tot_len = bpf_htons(outer);
		ip->id = 0;
		ip->frag_off = 0;
		ip->ttl = 64;
		ip->protocol = v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
		ip->check = (__u16)~sum;
		ip->saddr = source;
		ip->daddr = to;
	}
	return XDP_TX;
}

int floor44(struct xdp_md *ctx) { return balance(ctx, false, false, true); }
int floor66(struct xdp_md *ctx) { return balance(ctx, true, true, true); }
int floor46(struct xdp_md *ctx) { return balance(ctx, false, true, true); }
int floor44_stateless(struct xdp_md *ctx) { return balance(ctx, false, false, false); }
int floor66_stateless(struct xdp_md *ctx) { return balance(ctx, true, true, false); }
int floor46_stateless(struct xdp_md *ctx) { return balance(ctx, false, true, false); }
