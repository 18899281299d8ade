#include "file.h"

#include <pthread.h>
#include <string.h>

/* Eight tables, by which eight bytes are taken at once: about 2 GB/s, against 0.4 byte by byte. */
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

uint32_t crc32_of(uint32_t crc, const void* data, size_t bytes) {
  const unsigned char* at = data;
  pthread_once(&made, make_tables);
  crc = ~crc;
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
