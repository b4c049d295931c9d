/* The Internet checksum (RFC 1071), and keeping it right when some of its data changes. */
#ifndef TG_CSUM_H
#define TG_CSUM_H

/* bpf_csum_diff, by number: bcc declares it as returning int, and before kernel 6.13 its sum has all 32 bits, so that half of them
 * would look like errors. It has none to return for sizes that the verifier has seen. */
static __u32 (*const tg_csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size, __u32 seed) = (void *)28;

static __always_inline __u16 tg_csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

/* RFC 1624: the checksum after a 32-bit word of its data has changed. */
static __always_inline __u16 tg_csum_update(__u16 csum, __be32 from, __be32 to)
{
	__u32 sum = (__u16)~csum;
	sum += (__u16)~(from >> 16);
	sum += (__u16)~(from & 0xffff);
	sum += to >> 16;
	sum += to & 0xffff;
	return tg_csum_fold(sum);
}

#endif
