/// Packed 4-bit integers: the storage format `.int4`.
///
/// Two's complement, −8…7, two to a byte: element 2i in the low half, element 2i + 1 in the high
/// half. A row of odd length ends with an unused high half, so rows always begin at a byte.
public enum Int4 {
  /// The smallest and largest value.
  public static let range: ClosedRange<Int8> = -8...7

  /// Packs two values, of which only the low four bits count, into one byte.
  public static func pack(_ low: Int8, _ high: Int8) -> UInt8 {
    UInt8(bitPattern: low) & 0x0F | UInt8(bitPattern: high) << 4
  }

  /// The two values of a byte.
  public static func unpack(_ byte: UInt8) -> (low: Int8, high: Int8) {
    (Int8(bitPattern: byte << 4) >> 4, Int8(bitPattern: byte) >> 4)
  }
}
