/* Addresses of either family: copying and comparing. */
#ifndef TG_ADDR_H
#define TG_ADDR_H

#include "tg_abi.h"

static __always_inline void tg_map_ipv4(struct tg_addr *to, __be32 from)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = from;
}

static __always_inline void tg_copy_ipv6(struct tg_addr *to, const struct in6_addr *from)
{
	to->word[0] = from->in6_u.u6_addr32[0];
	to->word[1] = from->in6_u.u6_addr32[1];
	to->word[2] = from->in6_u.u6_addr32[2];
	to->word[3] = from->in6_u.u6_addr32[3];
}

static __always_inline bool tg_addr_equal(const struct tg_addr *a, const struct tg_addr *b)
{
	/* Without branches: the verifier would follow each of them. */
	return !((a->word[3] ^ b->word[3]) | (a->word[2] ^ b->word[2]) | (a->word[1] ^ b->word[1]) | (a->word[0] ^ b->word[0]));
}

static __always_inline bool tg_addr_is_zero(const struct tg_addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline bool tg_addr_is_ipv4(const struct tg_addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == bpf_htonl(0xffff);
}

#endif
