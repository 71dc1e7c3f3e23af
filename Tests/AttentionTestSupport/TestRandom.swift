/// A small generator with a fixed sequence per seed (SplitMix64), so that a failure repeats.
public struct TestRandom: RandomNumberGenerator {
  private var state: UInt64

  /// The sequence of this seed.
  public init(seed: UInt64) {
    state = seed
  }

  /// The next 64 bits.
  public mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }

  /// Uniform in 0..<1.
  public mutating func uniform() -> Float { Float(next() >> 40) * 0x1p-24 }

  /// Close to N(0, 1): the sum of twelve uniform numbers, less six.
  public mutating func normal() -> Float {
    (0..<12).reduce(Float(-6)) { sum, _ in sum + uniform() }
  }
}
