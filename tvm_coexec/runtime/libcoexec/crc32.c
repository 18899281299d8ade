#include "file.h"

#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

/* Eight tables, by which eight bytes are taken at once, for what the processor has no instructions for. */
enum { AT_ONCE = 8 };
static uint32_t tables[AT_ONCE][256];
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void make_tables(void) {
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    tables[0][byte] = crc;
  }
  for (int table = 1; table < AT_ONCE; ++table)
    for (int byte = 0; byte < 256; ++byte)
      tables[table][byte] = tables[table - 1][byte] >> 8 ^ tables[0][tables[table - 1][byte] & 255];
}

/* Some bytes at the begin are taken by the processor's own instructions, where it has them; `crc` is the inner state.
   Returns how many. */
#if defined(__x86_64__)
enum { FOLDED = 64, LEAST = 2 * FOLDED };

__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i sum, __m128i by, __m128i next) {
  return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x00), _mm_clmulepi64_si128(sum, by, 0x11)), next);
}

/* Products without carry, after Gopal and others, "Fast CRC computation for generic polynomials using PCLMULQDQ". */
__attribute__((target("pclmul,sse4.1"))) static uint32_t fold_all(uint32_t crc, const unsigned char* at, size_t bytes) {
  const __m128i by_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), by_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  const __m128i by_4 = _mm_set_epi64x(0, 0x0163cd6124), reduce = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  const __m128i words = _mm_setr_epi32(-1, 0, -1, 0);
  __m128i sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = _mm_loadu_si128((const __m128i*)(const void*)at + i);
  sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128((int)crc));
  for (at += FOLDED, bytes -= FOLDED; bytes >= FOLDED; at += FOLDED, bytes -= FOLDED)
    for (int i = 0; i < 4; ++i) sums[i] = fold(sums[i], by_64, _mm_loadu_si128((const __m128i*)(const void*)at + i));
  __m128i sum = sums[0];
  for (int i = 1; i < 4; ++i) sum = fold(sum, by_16, sums[i]);
  sum = _mm_xor_si128(_mm_srli_si128(sum, 8), _mm_clmulepi64_si128(sum, by_16, 0x10));
  sum = _mm_xor_si128(_mm_srli_si128(sum, 4), _mm_clmulepi64_si128(_mm_and_si128(sum, words), by_4, 0x00));
  __m128i part = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(sum, words), reduce, 0x10), words);
  return (uint32_t)_mm_extract_epi32(_mm_xor_si128(sum, _mm_clmulepi64_si128(part, reduce, 0x00)), 1);
}

static size_t by_instructions(uint32_t* crc, const unsigned char* at, size_t bytes) {
  if (bytes < LEAST || !__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1")) return 0;
  size_t taken = bytes / FOLDED * FOLDED;
  *crc = fold_all(*crc, at, taken);
  return taken;
}
#elif defined(__aarch64__)
enum { HAS_CRC32 = 1 << 7 }; /* of AT_HWCAP */

static size_t by_instructions(uint32_t* crc, const unsigned char* at, size_t bytes) {
  if (!(getauxval(AT_HWCAP) & HAS_CRC32)) return 0;
  size_t taken = bytes / sizeof(uint64_t) * sizeof(uint64_t);
  for (size_t i = 0; i < taken; i += sizeof(uint64_t)) {
    uint64_t next;
    memcpy(&next, at + i, sizeof next);
    __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(*crc) : "r"(next));
  }
  return taken;
}
#else
static size_t by_instructions(uint32_t* crc, const unsigned char* at, size_t bytes) {
  (void)crc, (void)at, (void)bytes;
  return 0;
}
#endif

uint32_t crc32_of(uint32_t crc, const void* data, size_t bytes) {
  const unsigned char* at = data;
  pthread_once(&made, make_tables);
  crc = ~crc;
  size_t taken = by_instructions(&crc, at, bytes);
  at += taken;
  bytes -= taken;
  for (; bytes >= AT_ONCE; bytes -= AT_ONCE, at += AT_ONCE) {
    uint32_t low, high; /* little-endian, as all machines are for which there are modules */
    memcpy(&low, at, sizeof low);
    memcpy(&high, at + sizeof low, sizeof high);
    low ^= crc;
    crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
          tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^ tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
  }
  for (; bytes; --bytes) crc = crc >> 8 ^ tables[0][(crc ^ *at++) & 255];
  return ~crc;
}

/* Polynomials modulo that of CRC-32; the highest bit is the coefficient of 1. */
static uint32_t product(uint32_t one, uint32_t other) {
  uint32_t sum = 0;
  for (uint32_t bit = UINT32_C(1) << 31; bit; bit >>= 1) {
    if (one & bit) sum ^= other;
    other = other >> 1 ^ (other & 1 ? 0xEDB88320u : 0);
  }
  return sum;
}

/* Bytes behind others multiply these by x^8 each. */
uint32_t crc32_joined(uint32_t first, uint32_t others, uint64_t other_bytes) {
  uint32_t moved = first;
  for (uint32_t power = UINT32_C(1) << 23; other_bytes; other_bytes >>= 1, power = product(power, power))
    if (other_bytes & 1) moved = product(power, moved);
  return moved ^ others;
}
