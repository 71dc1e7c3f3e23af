/// A 16-bit float with the range of float32 and 8 significant bits (bfloat16).
///
/// Layout: sign 1, exponent 8 (bias 127), mantissa 7; the upper 16 bits of a binary32. Relative
/// rounding error at most 2⁻⁸. A storage format: convert to `Float` to compute.
@frozen
public struct BFloat16: Hashable, Sendable, BitwiseCopyable, TensorElement {
  /// The stored bits.
  public var bitPattern: UInt16

  /// `.bfloat16`.
  public static var elementType: ElementType { .bfloat16 }

  /// The value with these bits.
  @inlinable
  public init(bitPattern: UInt16) {
    self.bitPattern = bitPattern
  }

  /// The nearest bfloat16, ties to even; overflow gives infinity and NaN stays NaN.
  @inlinable
  public init(_ value: Float) {
    let bits = value.bitPattern
    guard !value.isNaN else {
      bitPattern = UInt16(truncatingIfNeeded: bits >> 16) | 0x0040
      return
    }
    bitPattern = UInt16(truncatingIfNeeded: (bits &+ 0x7FFF &+ (bits >> 16 & 1)) >> 16)
  }

  /// The same value as float32, exactly.
  @inlinable public var float: Float { Float(bitPattern: UInt32(bitPattern) << 16) }
}
