// y = x W^T + b for a few rows x.
#include <new>
#include <vector>

#include "products.h"

template <typename T>
static void linear(const T* x, const T* w, const T* bias, T* y, int64_t rows, int64_t in, int64_t out, int threads) {
  std::vector<float> inputs(rows * in), outputs(rows * out);
  std::vector<const float*> xs(rows);
  std::vector<float*> ys(rows);
  for (int64_t r = 0; r < rows; r++) xs[r] = &inputs[r * in], ys[r] = &outputs[r * out];
  for (int64_t i = 0; i < rows * in; i++) inputs[i] = value(x[i]);
  const int64_t block = 32, blocks = (out + block - 1) / block;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t b = 0; b < blocks; b++) {
    int64_t from = b * block, to = from + block < out ? from + block : out;
    matrix_rows(w, from, to, in, xs.data(), rows, ys.data());
    for (int64_t r = 0; r < rows; r++)
      for (int64_t o = from; o < to; o++) put(y + r * out + o, ys[r][o] + (bias ? value(bias[o]) : 0));
  }
}

// Gives 1 where memory runs out, else 0.
extern "C" int tokenscale_linear(const void* x, const void* w, const void* bias, void* y, int64_t rows, int64_t in,
                                  int64_t out, int half, int threads) try {
  if (half)
    linear((const bf16*)x, (const bf16*)w, (const bf16*)bias, (bf16*)y, rows, in, out, threads);
  else
    linear((const float*)x, (const float*)w, (const float*)bias, (float*)y, rows, in, out, threads);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
