#include "winograd.h"

#include <string.h>

enum { TILE = 32, LANES = 4, TAPS = 3, MOST_POINTS = 6 };

/* A few channels; in double precision, so that one rounding is left. */
typedef float stored __attribute__((vector_size(LANES * sizeof(float))));
typedef double channels __attribute__((vector_size(LANES * sizeof(double))));

static inline __attribute__((always_inline)) void load(const float* place, channels* to) {
  stored from;
  memcpy(&from, place, sizeof from);
  *to = __builtin_convertvector(from, channels);
}

static inline __attribute__((always_inline)) void store(const channels* from, float* place) {
  stored to = __builtin_convertvector(*from, stored);
  memcpy(place, &to, sizeof to);
}

/* From three taps to the m + 2 points of a line: 0, 1, -1 and infinity, and for m = 4 before the last also 2 and -2. */
static inline __attribute__((always_inline)) void transform(uint32_t m, const channels* taps, channels* points) {
  const channels first = taps[0], middle = taps[1], last = taps[2];
  if (m == 2) {
    channels even = (first + last) * (1.0 / 2), odd = middle * (1.0 / 2);
    points[0] = first;
    points[1] = even + odd;
    points[2] = even - odd;
    points[3] = last;
  } else {
    channels even = (first + last) * (-1.0 / 6), odd = middle * (1.0 / 6);
    channels far_even = first * (1.0 / 24) + last * (1.0 / 6), far_odd = middle * (1.0 / 12);
    points[0] = first * (1.0 / 4);
    points[1] = even - odd;
    points[2] = even + odd;
    points[3] = far_even + far_odd;
    points[4] = far_even - far_odd;
    points[5] = last;
  }
}

static inline __attribute__((always_inline)) void make_channels(uint32_t m, const float* kernels, float* weights) {
  channels taps[TAPS], column[MOST_POINTS], lines[MOST_POINTS][TAPS], points[MOST_POINTS];
  for (uint32_t x = 0; x < TAPS; ++x) {
    for (uint32_t y = 0; y < TAPS; ++y) load(kernels + (y * TAPS + x) * TILE, &taps[y]);
    transform(m, taps, column);
    for (uint32_t y = 0; y < m + 2; ++y) lines[y][x] = column[y];
  }
  for (uint32_t y = 0; y < m + 2; ++y) {
    transform(m, lines[y], points);
    for (uint32_t x = 0; x < m + 2; ++x) store(&points[x], weights + (y * (m + 2) + x) * TILE);
  }
}

/* Rows are often a power of two apart, and all fall into one set of the cache: each is touched once. */
static inline __attribute__((always_inline)) void make_rows(uint32_t m, const float* kernels, size_t row, float* weights) {
  float from[TAPS * TAPS * TILE], to[MOST_POINTS * MOST_POINTS * TILE];
  const uint32_t points = (m + 2) * (m + 2);
  for (size_t first = 0; first < row; first += TILE) {
    for (uint32_t i = 0; i < TAPS * TAPS; ++i) memcpy(from + i * TILE, kernels + i * row + first, TILE * sizeof *from);
    for (uint32_t i = 0; i < TILE; i += LANES) {
      if (m == 2) make_channels(2, from + i, to + i);
      else make_channels(4, from + i, to + i);
    }
    for (uint32_t i = 0; i < points; ++i) memcpy(weights + i * row + first, to + i * TILE, TILE * sizeof *to);
  }
}

/* Where the processor has them, four numbers in double precision are one register. */
#if defined(__x86_64__)
__attribute__((target("avx"))) static void make_by_avx(uint32_t m, const float* kernels, size_t row, float* weights) {
  make_rows(m, kernels, row, weights);
}

void make_winograd_weights(uint32_t m, const float* kernels, size_t row, float* weights) {
  if (__builtin_cpu_supports("avx")) make_by_avx(m, kernels, row, weights);
  else make_rows(m, kernels, row, weights);
}
#else
void make_winograd_weights(uint32_t m, const float* kernels, size_t row, float* weights) {
  make_rows(m, kernels, row, weights);
}
#endif
