// What the gates of a recurrent cell do to the state, for the active samples. The two matrix
// products come before, one row per active sample: from_x and from_h, biases included.
#include "prelude.cuh"

__device__ __forceinline__ float sigmoid(float v) { return 1 / (1 + expf(-v)); }

template <class Body>
__device__ __forceinline__ void for_units(const int* index, const int* count, int units,
                                          Body body) {
  long long r = blockIdx.x * static_cast<long long>(blockDim.y) + threadIdx.y;
  if (r >= count[0]) return;
  long long sample = index[r];
  for (int u = threadIdx.x; u < units; u += blockDim.x) body(r, sample * units + u, u);
}

extern "C" __global__ void __launch_bounds__(256)
    gru(const float* from_x, const float* from_h, const int* index, const int* count,
        const float* h, float* new_h, int units) {
  for_units(index, count, units, [&](long long r, long long at, int u) {
    const float *x = from_x + r * 3 * units + u, *s = from_h + r * 3 * units + u;
    float reset = sigmoid(x[0] + s[0]), update = sigmoid(x[units] + s[units]);
    float candidate = tanhf(x[2 * units] + reset * s[2 * units]);
    new_h[at] = candidate + update * (h[at] - candidate);
  });
}
EXPORT(gru)

extern "C" __global__ void __launch_bounds__(256)
    lstm(const float* from_x, const float* from_h, const int* index, const int* count,
         const float* c, float* new_h, float* new_c, int units) {
  for_units(index, count, units, [&](long long r, long long at, int u) {
    const float *x = from_x + r * 4 * units + u, *s = from_h + r * 4 * units + u;
    float in = sigmoid(x[0] + s[0]), forget = sigmoid(x[units] + s[units]);
    float candidate = tanhf(x[2 * units] + s[2 * units]);
    float gate = sigmoid(x[3 * units] + s[3 * units]);
    float cell = forget * c[at] + in * candidate;
    new_c[at] = cell;
    new_h[at] = gate * tanhf(cell);
  });
}
EXPORT(lstm)

extern "C" __global__ void __launch_bounds__(256)
    rnn_tanh(const float* from_x, const float* from_h, const int* index, const int* count,
             float* new_h, int units) {
  for_units(index, count, units, [&](long long r, long long at, int u) {
    new_h[at] = tanhf(from_x[r * units + u] + from_h[r * units + u]);
  });
}
EXPORT(rnn_tanh)
