/* A linear layer over packed weights [tiles, WIDTH, 32], with a bias, a residual or NULL, and ReLU: columns of some tiles. */
static void linear(float* const* memory, int count, int begin, int tiles) {
  const float *input = memory[0], *weights = memory[1], *bias = memory[2], *residual = count == 5 ? memory[3] : 0;
  float* output = memory[count - 1];
  for (int row = 0; row < ROWS; ++row)
    for (int column = begin * 32; column < (begin + tiles) * 32; ++column) {
      float sum = bias[column];
      for (int k = 0; k < WIDTH; ++k) sum += input[row * WIDTH + k] * weights[(column / 32 * WIDTH + k) * 32 + column % 32];
      if (residual) sum += residual[row * WIDTH + column];
      output[row * WIDTH + column] = sum > 0 ? sum : 0;
    }
}
