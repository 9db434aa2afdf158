// Small steps between the products, each in one call: root mean square norm, and rotary positions.
#include <cmath>
#include <vector>

#include "products.h"

template <typename T>
static void rms_norm(const T* x, const T* w, T* y, int64_t rows, int64_t dim, float eps) {
  const int64_t whole = dim / LANES * LANES;
  for (int64_t r = 0; r < rows; r++) {
    const T* in = x + r * dim;
    T* out = y + r * dim;
    vec squares = all(0);
    for (int64_t i = 0; i < whole; i += LANES) squares += load(in + i) * load(in + i);
    float sum = total(squares);
    for (int64_t i = whole; i < dim; i++) sum += value(in[i]) * value(in[i]);
    const float scale = 1.0f / std::sqrt(sum / float(dim) + eps);
    for (int64_t i = 0; i < dim; i++) {
      put(out + i, value(in[i]) * scale);  // rounded to the type before the weight, as transformers does
      put(out + i, value(w[i]) * value(out[i]));
    }
  }
}

extern "C" void tokenscale_rms_norm(const void* x, const void* w, void* y, int64_t rows, int64_t dim, double eps,
                                    int half) {
  if (half)
    rms_norm((const bf16*)x, (const bf16*)w, (bf16*)y, rows, dim, float(eps));
  else
    rms_norm((const float*)x, (const float*)w, (float*)y, rows, dim, float(eps));
}

// y = x cos + (-x2, x1) sin, where x1 and x2 are the halves of x [batch, heads, rows, dim], and cos and sin are
// [batch, rows, dim].
template <typename T>
static void rotate(const T* x, const int64_t* strides, const T* cos, const T* sin, T* y, int64_t batch, int64_t heads,
                   int64_t rows, int64_t dim) {
  const int64_t half = dim / 2;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows; r++) {
        const T* in = x + b * strides[0] + h * strides[1] + r * strides[2];
        const T *c = cos + (b * rows + r) * dim, *s = sin + (b * rows + r) * dim;
        T* out = y + ((b * heads + h) * rows + r) * dim;
        for (int64_t i = 0; i < half; i++) {
          float first = value(in[i]), second = value(in[i + half]);
          put(out + i, first * value(c[i]) - second * value(s[i]));
          put(out + i + half, second * value(c[i + half]) + first * value(s[i + half]));
        }
      }
}

extern "C" void tokenscale_rotate(const void* x, const int64_t* strides, const void* cos, const void* sin, void* y,
                                  int64_t batch, int64_t heads, int64_t rows, int64_t dim, int half) {
  if (half)
    rotate((const bf16*)x, strides, (const bf16*)cos, (const bf16*)sin, (bf16*)y, batch, heads, rows, dim);
  else
    rotate((const float*)x, strides, (const float*)cos, (const float*)sin, (float*)y, batch, heads, rows, dim);
}
