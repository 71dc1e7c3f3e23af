package import IntFlashAttention

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Named distributions of queries, keys and values.
package enum SyntheticInput: String, CaseIterable, Sendable {
  /// N(0, 1).
  case normal
  /// U(−½, ½).
  case uniform
  /// N(0, 1) with what language models add.
  ///
  /// Every sixteenth channel of the keys has an offset of 8 that all tokens share, and token 0 is an
  /// attention sink: its key points where the queries do, and its value is a twentieth of the others.
  case outliers

  /// Operands of this shape; every value is a float16, so that all input types hold the same
  /// numbers.
  ///
  /// - Throws: `AttentionError` with code `.outOfMemory`.
  package func operands(
    _ shape: AttentionShape,
    seed: UInt64,
    elementType: ElementType = .float32
  ) throws(AttentionError) -> Operands {
    var random = SeededRandom(seed: seed)
    var query = draw(shape.queryShape, &random)
    var key = draw(shape.keyShape, &random)
    var value = draw(shape.valueShape, &random)
    if self == .outliers { addOutliers(shape, query: &query, key: &key, value: &value) }
    return Operands(
      query: try Tensor(query.map(Half.rounded), shape: shape.queryShape, elementType: elementType),
      key: try Tensor(key.map(Half.rounded), shape: shape.keyShape, elementType: elementType),
      value: try Tensor(value.map(Half.rounded), shape: shape.valueShape, elementType: elementType)
    )
  }

  private func draw(_ shape: [Int], _ random: inout SeededRandom) -> [Float] {
    (0..<shape.reduce(1, *)).map { _ in
      self == .uniform ? Float(random.uniform() - 0.5) : Float(random.normal())
    }
  }

  private func addOutliers(
    _ shape: AttentionShape,
    query: inout [Float],
    key: inout [Float],
    value: inout [Float]
  ) {
    let (d, dv, length) = (shape.headDimension, shape.valueDimension, max(shape.keyValueLength, 1))
    for index in query.indices where index % d % 4 == 1 { query[index] += 1 }
    for index in key.indices {
      let (token, channel) = (index / d % length, index % d)
      if channel % 16 == 3 { key[index] += 8 }
      if token == 0 && channel % 4 == 1 { key[index] += 4 }
    }
    for index in value.indices where index / dv % length == 0 { value[index] *= 0.05 }
  }
}

/// A generator with a fixed sequence per seed (SplitMix64).
package struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64
  private var spare: Double?

  /// The sequence of this seed.
  package init(seed: UInt64) {
    state = seed
  }

  /// The next 64 bits.
  package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }

  /// Uniform in 0..<1.
  package mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

  /// N(0, 1), two at a time (Box and Muller).
  package mutating func normal() -> Double {
    if let value = spare {
      spare = nil
      return value
    }
    let radius = (-2 * log(1 - uniform())).squareRoot()
    let angle = 2 * Double.pi * uniform()
    spare = radius * sin(angle)
    return radius * cos(angle)
  }
}
