// The experts of a MoE layer for a few tokens: every expert's weights are read once, for all tokens that chose it.
#include <algorithm>
#include <new>
#include <vector>

#include "products.h"

namespace {

// The (token, choice) slots in order of their experts.
struct Slots {
  std::vector<int64_t> order, first;  // slots by expert; expert e has those at first[e] ... first[e + 1] - 1
  std::vector<int64_t> used;          // experts that were chosen

  Slots(const int64_t* experts, int64_t slots, int64_t count) : order(slots), first(count + 1, 0) {
    for (int64_t s = 0; s < slots; s++)
      if (experts[s] >= 0 && experts[s] < count) first[experts[s] + 1]++;
    for (int64_t e = 0; e < count; e++) {
      if (first[e + 1]) used.push_back(e);
      first[e + 1] += first[e];
    }
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t s = 0; s < slots; s++)
      if (experts[s] >= 0 && experts[s] < count) order[next[experts[s]]++] = s;
  }
};

constexpr int64_t BLOCK = 64;  // rows of one expert's matrix that a thread takes at a time

// y[s] = W[expert of s] x[s] (+ bias) for all slots; called by every thread of a team.
template <typename T>
void products(const Slots& slots, const T* w, const T* bias, int64_t in, int64_t out, bool transposed,
              const float* const* x, float* const* y) {
  const int64_t blocks = (out + BLOCK - 1) / BLOCK;
#pragma omp for schedule(dynamic, 2)
  for (int64_t unit = 0; unit < int64_t(slots.used.size()) * blocks; unit++) {
    int64_t e = slots.used[unit / blocks], from = unit % blocks * BLOCK, to = std::min(out, from + BLOCK);
    int64_t count = slots.first[e + 1] - slots.first[e];
    const float* xs[BLOCK];
    float* ys[BLOCK];
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
      int64_t here = std::min(BLOCK, count - begin);
      for (int64_t i = 0; i < here; i++) {
        int64_t s = slots.order[slots.first[e] + begin + i];
        xs[i] = x[s], ys[i] = y[s];
      }
      if (transposed)
        matrix_columns(w + e * in * out, from, to, in, out, xs, here, ys);
      else
        matrix_rows(w + e * in * out, from, to, in, xs, here, ys);
      if (bias)
        for (int64_t i = 0; i < here; i++)
          for (int64_t o = from; o < to; o++) ys[i][o] += value(bias[e * out + o]);
    }
  }
}

// silu(gate) * up, where gate and up stand one behind the other; written over the gate.
inline void silu_gate(float* both, int64_t inner) {
  int64_t i = 0;
  for (; i + LANES <= inner; i += LANES) {
    vec gate = load(both + i), up = load(both + inner + i);
    store(both + i, gate / (1.0f + exp(-gate)) * up);
  }
  for (; i < inner; i++) {
    float lanes[LANES] = {-both[i]};
    both[i] = both[i] / (1.0f + exp(load(lanes))[0]) * both[inner + i];
  }
}

template <typename T>
void experts(const T* x, const int64_t* chosen, const T* weights, const T* gate_up, const T* down, T* y,
             int64_t tokens, int64_t top_k, int64_t count, int64_t hidden, int64_t inner, int threads) {
  const int64_t all_slots = tokens * top_k;
  Slots slots(chosen, all_slots, count);
  std::vector<float> inputs(tokens * hidden), both(all_slots * 2 * inner), outputs(all_slots * hidden, 0.0f);
  std::vector<const float*> xs(all_slots), hs(all_slots);
  std::vector<float*> gs(all_slots), ys(all_slots);
  for (int64_t i = 0; i < tokens * hidden; i++) inputs[i] = value(x[i]);
  for (int64_t s = 0; s < all_slots; s++) {
    xs[s] = &inputs[s / top_k * hidden], ys[s] = &outputs[s * hidden];
    hs[s] = gs[s] = &both[s * 2 * inner];
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    products(slots, gate_up, (const T*)nullptr, hidden, 2 * inner, false, xs.data(), gs.data());
#pragma omp for schedule(static)
    for (int64_t i = 0; i < slots.first[count]; i++) silu_gate(gs[slots.order[i]], inner);
    products(slots, down, (const T*)nullptr, inner, hidden, false, hs.data(), ys.data());
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t h = 0; h < hidden; h++) {
        float sum = 0;
        for (int64_t k = 0; k < top_k; k++) sum += value(weights[t * top_k + k]) * outputs[(t * top_k + k) * hidden + h];
        put(y + t * hidden + h, sum);
      }
  }
}

template <typename T>
void grouped(const T* x, int64_t per_row, const int64_t* chosen, const T* w, const T* bias, T* y, int64_t count_slots,
             int64_t count, int64_t in, int64_t out, bool transposed, int threads) {
  Slots slots(chosen, count_slots, count);
  const int64_t rows = count_slots / per_row;
  std::vector<float> inputs(rows * in), outputs(count_slots * out, 0.0f);
  std::vector<const float*> xs(count_slots);
  std::vector<float*> ys(count_slots);
  for (int64_t i = 0; i < rows * in; i++) inputs[i] = value(x[i]);
  for (int64_t s = 0; s < count_slots; s++) xs[s] = &inputs[s / per_row * in], ys[s] = &outputs[s * out];
#pragma omp parallel num_threads(threads) if (threads > 1)
  products(slots, w, bias, in, out, transposed, xs.data(), ys.data());
  for (int64_t i = 0; i < count_slots * out; i++) put(y + i, outputs[i]);
}

}  // namespace

// y[t] = sum over k of weights[t, k] * down[e] (silu(gate[e] x[t]) * (up[e] x[t])), e = chosen[t, k]. An index that
// is no expert's adds nothing. Gives 1 where memory runs out, else 0.
extern "C" int tokenscale_experts(const void* x, const int64_t* chosen, const void* weights, const void* gate_up,
                                   const void* down, void* y, int64_t tokens, int64_t top_k, int64_t count,
                                   int64_t hidden, int64_t inner, int half, int threads) try {
  if (half)
    experts((const bf16*)x, chosen, (const bf16*)weights, (const bf16*)gate_up, (const bf16*)down, (bf16*)y, tokens,
            top_k, count, hidden, inner, threads);
  else
    experts((const float*)x, chosen, (const float*)weights, (const float*)gate_up, (const float*)down, (float*)y,
            tokens, top_k, count, hidden, inner, threads);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// y[s] = W[chosen[s]] x[s / per_row] + bias[chosen[s]]; W is [experts, out, in], or transposed [experts, in, out].
extern "C" int tokenscale_grouped(const void* x, int64_t per_row, const int64_t* chosen, const void* w,
                                   const void* bias, void* y, int64_t slots, int64_t count, int64_t in, int64_t out,
                                   int transposed, int half, int threads) try {
  if (half)
    grouped((const bf16*)x, per_row, chosen, (const bf16*)w, (const bf16*)bias, (bf16*)y, slots, count, in, out,
            transposed, threads);
  else
    grouped((const float*)x, per_row, chosen, (const float*)w, (const float*)bias, (float*)y, slots, count, in, out,
            transposed, threads);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
