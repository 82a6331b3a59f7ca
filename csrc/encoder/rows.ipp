// The functions of a SIMD kernel, written once for all instruction sets. It is included in the
// namespace of each, after these are defined there:
//
//   ENCODER_TARGET, ENCODER_INLINE   attributes of functions, and of those that are inlined
//   kLanes, kColumns                 lanes of 32 bits; columns that are computed together
//   kGroup, kApart, kOffset          Kernel::group, Kernel::apart and Kernel::offset
//   Value                            the type of an input of a 3x3 convolution
//   Sums, Halves                     vectors of kLanes int32, and of 2 * kLanes int16
//   load_sums, load_halves, store_halves, broadcast (of 32 bits), pack, add_saturated
//   dot8, dot16                      sums + products of a group, of 3x3 convolutions and of others
//   requantise                       (sum * multiplier + 2^(shift - 1)) >> shift
//   gelu_of, store_quantised
//
// The sums of kColumns columns and two vectors of outputs stay in registers while all inputs are
// added; each vector of weights is loaded once for kColumns columns.

struct Dot16 {
  static constexpr size_t kSize = 2;
  static ENCODER_INLINE Sums add(Sums sums, Sums inputs, Sums weights) {
    return dot16(sums, inputs, weights);
  }
};

struct Dot8 {
  static constexpr size_t kSize = kGroup;
  static ENCODER_INLINE Sums add(Sums sums, Sums inputs, Sums weights) {
    return dot8(sums, inputs, weights);
  }
};

// Adds the products of a column's group of inputs to its sums.
template <class Product>
ENCODER_INLINE void accumulate(Sums& low, Sums& high, const void* at, Sums low_weights,
                               Sums high_weights) {
  const Sums inputs = broadcast(at);
  low = Product::add(low, inputs, low_weights);
  high = Product::add(high, inputs, high_weights);
}

// Outputs of one block, of as many columns as there are `c`. `kStride`: values from a column's
// inputs to the next's. The sums are indexed by constants alone, without a loop: compilers then
// keep them in registers.
template <size_t kStride, size_t kRows, size_t kLength, class Product, class T, size_t... c>
ENCODER_TARGET inline void convolve_tile(const Packed& packed, size_t block, const T* at,
                                         size_t row_stride, int16_t* out, size_t outputs,
                                         std::index_sequence<c...>) {
  constexpr size_t kVector = sizeof(Sums);
  const uint8_t* weights = static_cast<const uint8_t*>(packed.weights) +
                           block * (2 * kVector * kRows * kLength / Product::kSize);
  const size_t first = block * 2 * kLanes, second = first + kLanes;
  Sums low[] = {(static_cast<void>(c), load_sums(packed.biases + first))...};
  Sums high[] = {(static_cast<void>(c), load_sums(packed.biases + second))...};
  for (size_t row = 0; row < kRows; ++row) {
    const T* from = at + row * row_stride;
    for (size_t i = 0; i < kLength; i += Product::kSize, weights += 2 * kVector) {
      const Sums low_weights = load_sums(weights), high_weights = load_sums(weights + kVector);
      (accumulate<Product>(low[c], high[c], from + c * kStride + i, low_weights, high_weights),
       ...);
    }
  }
  const Sums low_multipliers = load_sums(packed.multipliers + first),
             high_multipliers = load_sums(packed.multipliers + second);
  (store_halves(out + c * outputs + first,
                pack(requantise(low[c], low_multipliers, packed.shift),
                     requantise(high[c], high_multipliers, packed.shift))),
   ...);
}

template <size_t kStride, size_t kRows, size_t kLength, size_t kOutputs, class Product, class T>
ENCODER_TARGET inline void convolve_row(const Packed& packed, const void* inputs, size_t row_stride,
                                        size_t columns, int16_t* out) {
  static_assert(kOutputs % (2 * kLanes) == 0 && kLength % Product::kSize == 0);
  const T* at = static_cast<const T*>(inputs);
  for (size_t block = 0; block < kOutputs / (2 * kLanes); ++block) {
    size_t column = 0;
    const auto tiles = [&](auto count) ENCODER_TARGET {
      for (; column + count <= columns; column += count)
        convolve_tile<kStride, kRows, kLength, Product>(
            packed, block, at + column * kStride, row_stride, out + column * kOutputs, kOutputs,
            std::make_index_sequence<count>());
    };
    tiles(std::integral_constant<size_t, kColumns>());
    if constexpr (kColumns > 4) tiles(std::integral_constant<size_t, 4>());
    if constexpr (kColumns > 2) tiles(std::integral_constant<size_t, 2>());
    tiles(std::integral_constant<size_t, 1>());
  }
}

ENCODER_TARGET inline void gelu_row(const int16_t* in, size_t count, const Gelu& gelu,
                                    int16_t* out) {
  for (size_t i = 0; i < count; i += 2 * kLanes)
    store_halves(out + i, gelu_of(load_halves(in + i), gelu));
}

ENCODER_TARGET inline void activate_row(const int16_t* in, size_t count, const Gelu& gelu,
                                        const Rounding& rounding, void* out) {
  Value* to = static_cast<Value*>(out);
  for (size_t i = 0; i < count; i += 2 * kLanes)
    store_quantised(to + i, gelu_of(load_halves(in + i), gelu), rounding);
}

ENCODER_TARGET inline void add_row(int16_t* values, const int16_t* more, size_t count) {
  for (size_t i = 0; i < count; i += 2 * kLanes)
    store_halves(values + i, add_saturated(load_halves(values + i), load_halves(more + i)));
}

// The kernel of this namespace.
constexpr Kernel make_kernel(const char* name) {
  return {name,
          is_available,
          2 * kLanes,
          kGroup,
          sizeof(Value),
          kApart,
          kOffset,
          convolve_row<3 * kPatch, kPatch, 3 * kPatch, kChannels, Dot16, int16_t>,
          convolve_row<kChannels, 3, 3 * kChannels, kHidden, Dot8, Value>,
          convolve_row<kHidden, 3, 3 * kHidden, kChannels, Dot8, Value>,
          convolve_row<kChannels, 1, kChannels, kLatent, Dot16, int16_t>,
          gelu_row,
          activate_row,
          add_row};
}
