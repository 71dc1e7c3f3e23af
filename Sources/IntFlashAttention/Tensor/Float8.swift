/// An 8-bit float in the E4M3 format of the OCP FP8 specification (the "FN" form).
///
/// Layout: sign 1, exponent 4 (bias 7), mantissa 3. Largest value 448, smallest normal 2⁻⁶, smallest
/// subnormal 2⁻⁹; no infinities; 0x7F and 0xFF are NaN. E5M2 is not offered: its two mantissa bits
/// double the rounding error and attention does not need its range once operands are scaled.
@frozen
public struct Float8: Hashable, Sendable, BitwiseCopyable, TensorElement {
  /// The stored bits.
  public var bitPattern: UInt8

  /// `.float8`.
  public static var elementType: ElementType { .float8 }

  /// The largest finite value.
  public static let greatestFiniteMagnitude: Float = 448

  /// The value with these bits.
  @inlinable
  public init(bitPattern: UInt8) {
    self.bitPattern = bitPattern
  }

  /// The nearest E4M3 value, ties to even; magnitudes above 448 saturate and NaN stays NaN.
  public init(_ value: Float) {
    let sign: UInt8 = value.sign == .minus ? 0x80 : 0
    guard !value.isNaN else {
      bitPattern = sign | 0x7F
      return
    }
    let magnitude = min(value.magnitude, Self.greatestFiniteMagnitude)
    guard magnitude >= 0x1p-6 else {
      // Subnormal: a whole number of 2⁻⁹ steps. Eight of them are the smallest normal, 0x08.
      bitPattern = sign | UInt8((magnitude * 0x1p9).rounded(.toNearestOrEven))
      return
    }
    let bits = magnitude.bitPattern
    let rounded = bits &+ 0x7_FFFF &+ (bits >> 20 & 1)
    // The exponent bias drops from 127 to 7: 120 steps of the exponent's lowest bit.
    bitPattern = sign | UInt8(truncatingIfNeeded: (rounded >> 20) &- (120 << 3))
  }

  /// The same value as float32, exactly.
  public var float: Float {
    let exponent = Int(bitPattern >> 3 & 0xF)
    let mantissa = Float(bitPattern & 7)
    guard bitPattern & 0x7F != 0x7F else { return .nan }
    let magnitude =
      exponent == 0
      ? mantissa * 0x1p-9
      : Float(sign: .plus, exponent: exponent - 7, significand: 1 + mantissa / 8)
    return bitPattern & 0x80 == 0 ? magnitude : -magnitude
  }
}
