// Products of a few input rows with a matrix that is read once: the memory's speed is the limit.
#pragma once
#include "vector.h"

// out[m][r] = w[r] . x[m] for R rows of a matrix (`stride` apart) and M inputs. Every sum runs over the lanes
// and then over the rest in one order, whatever R and M are: a row's result never depends on its batch.
template <int R, int M, typename T>
static inline void dots(const T* w, ptrdiff_t stride, const float* const* x, int in, float* const* out, int at) {
  vec acc[16] = {};
  const ptrdiff_t whole = in / LANES * LANES;
  for (ptrdiff_t i = 0; i < whole; i += LANES) {
    vec weights[R];
    for (int r = 0; r < R; r++) weights[r] = load(w + r * stride + i);
    _Pragma("GCC unroll 16") for (int m = 0; m < M; m++) {
      vec input = load(x[m] + i);
      in_register(input);
      _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) acc[m * R + r] += weights[r] * input;
    }
  }
  float found[LANES];
  store(found, sums(acc));
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) {
      float sum = found[m * R + r];
      for (ptrdiff_t j = whole; j < in; j++) sum += value(w[r * stride + j]) * x[m][j];
      out[m][at + r] = sum;
    }
}

template <int R, typename T>
static inline void row_block(const T* w, ptrdiff_t stride, const float* const* x, int count, int in,
                             float* const* out, int at) {
  int m = 0;
  if constexpr (INPUTS == 4) {
    for (; m + 4 <= count; m += 4) dots<R, 4>(w, stride, x + m, in, out + m, at);
    if (m + 3 == count) return dots<R, 3>(w, stride, x + m, in, out + m, at);
    if (m + 2 == count) return dots<R, 2>(w, stride, x + m, in, out + m, at);
  }
  for (; m < count; m++) dots<R, 1>(w, stride, x + m, in, out + m, at);
}

template <int LOCALITY = 2, typename T>
static inline void prefetch(const T* p, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += 64 / ptrdiff_t(sizeof(T))) __builtin_prefetch(p + i, 0, LOCALITY);
}

constexpr int AHEAD = 8;  // rows of a matrix that are fetched before they are used

// out[m][o] for the rows o = from ... to - 1 of a matrix [rows, in] and `count` inputs.
template <typename T>
static inline void matrix_rows(const T* w, int from, int to, int in, const float* const* x, int count,
                               float* const* out) {
  int o = from;
  for (; o + 4 <= to; o += 4) {
    // For few inputs the first cache has room for what comes next; for more it has to keep the rows in use.
    if (count <= 2)
      prefetch<3>(w + ptrdiff_t(o + 4) * in, 4 * in);
    else
      prefetch(w + ptrdiff_t(o + AHEAD) * in, 4 * in);
    row_block<4>(w + ptrdiff_t(o) * in, in, x, count, in, out, o);
  }
  for (; o < to; o++) row_block<1>(w + ptrdiff_t(o) * in, in, x, count, in, out, o);
}

// The same for a matrix that is stored [in, out]: columns from ... to - 1.
template <typename T>
static inline void matrix_columns(const T* w, int from, int to, int in, int out_features, const float* const* x,
                                  int count, float* const* out) {
  for (int m = 0; m < count; m++)
    for (int o = from; o < to; o++) out[m][o] = 0;
  for (int i = 0; i < in; i++) {
    const T* row = w + ptrdiff_t(i) * out_features;
    prefetch(row + ptrdiff_t(AHEAD) * out_features + from, to - from);
    for (int m = 0; m < count; m++) {
      float input = x[m][i];
      int o = from;
      for (; o + LANES <= to; o += LANES) store(out[m] + o, load(out[m] + o) + load(row + o) * input);
      for (; o < to; o++) out[m][o] += value(row[o]) * input;
    }
  }
}
