/// How one element of a tensor is stored.
///
/// Arithmetic never happens in these types: float32 is what elements convert to and from.
public enum ElementType: String, Sendable, Hashable, CaseIterable {
  /// IEEE 754 binary32.
  case float32
  /// IEEE 754 binary16: 11 significant bits, largest finite value 65504.
  case float16
  /// The upper half of a binary32: 8 significant bits, the range of float32.
  case bfloat16
  /// FP8 E4M3 (OCP, "FN"): 4 significant bits, largest value 448, no infinity. See ``Float8``.
  case float8
  /// Two's complement, −128…127.
  case int8
  /// Two's complement, −8…7, two to a byte. See ``Int4``.
  case int4

  /// Bits that one element takes.
  public var bitWidth: Int {
    switch self {
    case .float32: 32
    case .float16, .bfloat16: 16
    case .float8, .int8: 8
    case .int4: 4
    }
  }

  /// Whether attention accepts it for queries, keys, values and outputs.
  public var isFloatingPointOperand: Bool {
    self == .float32 || self == .float16 || self == .bfloat16
  }

  /// Bytes that `elementCount` consecutive elements take, or nil where that overflows `Int`.
  package func byteCount(elementCount: Int) -> Int? {
    let (bits, overflow) = elementCount.multipliedReportingOverflow(by: bitWidth)
    guard !overflow, bits <= Int.max - 7 else { return nil }
    return (bits + 7) / 8
  }
}

/// A Swift type whose arrays can be viewed as a tensor.
public protocol TensorElement: BitwiseCopyable, Sendable {
  /// The storage format that the bits of this type have.
  static var elementType: ElementType { get }
}

extension Float: TensorElement {
  /// `.float32`.
  public static var elementType: ElementType { .float32 }
}

#if !(os(macOS) && arch(x86_64))
extension Float16: TensorElement {
  /// `.float16`.
  public static var elementType: ElementType { .float16 }
}
#endif

extension Int8: TensorElement {
  /// `.int8`.
  public static var elementType: ElementType { .int8 }
}

extension Bool: TensorElement {
  /// `.int8`: 1 is true, 0 is false.
  public static var elementType: ElementType { .int8 }
}
