/* Weights of Winograd's convolution, made of 3x3 kernels. */
#ifndef COEXEC_WINOGRAD_H
#define COEXEC_WINOGRAD_H

#include <stddef.h>
#include <stdint.h>

/* The weights of F(m x m, 3x3), m being 2 or 4, in (m + 2)² rows, of kernels in nine rows of as many floats: a multiple of
   32. */
void make_winograd_weights(uint32_t m, const float* kernels, size_t row, float* weights);

#endif
