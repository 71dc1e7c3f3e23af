import IntFlashAttention

/// The header of a `.npy` file.
struct NpyHeader {
  /// The number formats that we read.
  enum DataType: String, CaseIterable {
    case float32 = "<f4"
    case float16 = "<f2"
    case float64 = "<f8"
    case int8 = "|i1"
    case bool = "|b1"

    /// How elements of this type are written, or nil.
    init?(_ type: ElementType) {
      switch type {
      case .float32: self = .float32
      case .float16: self = .float16
      case .int8: self = .int8
      case .bfloat16, .float8, .int4: return nil
      }
    }

    /// Bits of one element.
    var bitWidth: Int { elementType?.bitWidth ?? 64 }

    /// The element type with the same bits; nil for float64.
    var elementType: ElementType? {
      switch self {
      case .float32: .float32
      case .float16: .float16
      case .int8, .bool: .int8
      case .float64: nil
      }
    }
  }

  private static let magic: [UInt8] = [0x93] + Array("NUMPY".utf8)
  /// As long as version 1.0 can say: far more than three short entries need.
  private static let longest = 0xFFFF
  /// More dimensions than NumPy has.
  private static let mostDimensions = 64

  /// How elements are stored.
  let type: DataType
  /// Sizes, outermost first.
  let shape: [Int]
  /// Where the elements begin.
  let dataOffset: Int

  /// Reads the header of `file`; whether the elements are all there is left to the caller.
  init(_ file: Span<UInt8>, path: String) throws(TensorFileError) {
    let text = try Self.textRange(file, path: path)
    dataOffset = text.upperBound
    guard !text.isEmpty, file[text.upperBound - 1] == UInt8(ascii: "\n") else {
      throw TensorFileError(.malformed, path: path, "the header must end with a new line")
    }
    var cursor = ByteCursor(file.extracting(text), path: path)
    var type: DataType?
    var shape: [Int]?
    var isFortran: Bool?
    try cursor.expect("{")
    while !cursor.skip("}") {
      let key = try Self.string(&cursor)
      try cursor.expect(":")
      switch key {
      case "descr" where type == nil: type = try Self.descr(&cursor)
      case "shape" where shape == nil: shape = try Self.tuple(&cursor)
      case "fortran_order" where isFortran == nil:
        let word = cursor.word()
        guard word == "True" || word == "False" else {
          throw cursor.failure("fortran_order must be True or False")
        }
        isFortran = word == "True"
      default:
        throw cursor.failure(
          "key \(key.quoted) is repeated or is none of descr, fortran_order, shape"
        )
      }
      guard cursor.skip(",") else {
        try cursor.expect("}")
        break
      }
    }
    cursor.skipBlanks()
    guard cursor.next == nil else { throw cursor.failure("text after the closing '}'") }
    guard let type, let shape, let isFortran else {
      throw cursor.failure("the header needs each of descr, fortran_order and shape")
    }
    guard !isFortran else {
      throw TensorFileError(
        .unsupportedLayout,
        path: path,
        "fortran_order is True; save numpy.ascontiguousarray(array) instead"
      )
    }
    self.type = type
    self.shape = shape
  }

  /// Where the dictionary lies.
  private static func textRange(
    _ file: Span<UInt8>,
    path: String
  ) throws(TensorFileError) -> Range<Int> {
    for index in 0..<min(magic.count, file.count) where file[index] != magic[index] {
      throw TensorFileError(.malformed, path: path, "a .npy file begins with \\x93NUMPY")
    }
    guard file.count >= 8 else {
      throw TensorFileError(.truncated, path: path, "\(file.count) bytes are less than a header")
    }
    let (major, minor) = (file[6], file[7])
    guard 1...3 ~= major, minor == 0 else {
      throw TensorFileError(
        .malformed,
        path: path,
        "version \(major).\(minor) of the format is none of 1.0, 2.0 and 3.0"
      )
    }
    let start = major == 1 ? 10 : 12
    guard file.count >= start else {
      throw TensorFileError(.truncated, path: path, "\(file.count) bytes are less than a header")
    }
    let length = Int(file.littleEndian(8..<start))
    guard length <= longest else {
      throw TensorFileError(
        .tooLarge,
        path: path,
        "header of \(length) bytes; at most \(longest) are read"
      )
    }
    guard length <= file.count - start else {
      throw TensorFileError(
        .truncated,
        path: path,
        "header of \(length) bytes, but only \(file.count - start) follow its length"
      )
    }
    return start..<start + length
  }

  private static func descr(_ cursor: inout ByteCursor) throws(TensorFileError) -> DataType {
    guard !cursor.skip("[") else {
      throw cursor.failure("descr is a structured type", code: .unsupportedType)
    }
    let name = try string(&cursor)
    guard let type = DataType(rawValue: name) else {
      let known = DataType.allCases.map(\.rawValue).joined(separator: ", ")
      throw cursor.failure("descr \(name.quoted) is none of \(known)", code: .unsupportedType)
    }
    return type
  }

  /// A Python string of plain characters in either kind of quotes.
  private static func string(_ cursor: inout ByteCursor) throws(TensorFileError) -> String {
    let quote: Unicode.Scalar = cursor.skip("\"") ? "\"" : "'"
    if quote == "'" { try cursor.expect("'") }
    var code: [UInt8] = []
    while let byte = cursor.next, byte != UInt8(ascii: quote) {
      guard 0x20..<0x7F ~= byte, byte != UInt8(ascii: "\\") else {
        throw cursor.failure("byte \(byte) in a string")
      }
      code.append(byte)
      cursor.position += 1
    }
    try cursor.expect(quote)
    return String(decoding: code, as: UTF8.self)
  }

  /// A Python tuple of whole numbers: `()`, `(3,)`, `(3, 4)` or `(3, 4,)`, but not `(3)`.
  private static func tuple(_ cursor: inout ByteCursor) throws(TensorFileError) -> [Int] {
    try cursor.expect("(")
    var result: [Int] = []
    while !cursor.skip(")") {
      guard result.count < mostDimensions else {
        throw cursor.failure("the shape has more than \(mostDimensions) entries")
      }
      result.append(try cursor.size("a size in the shape"))
      guard !cursor.skip(",") else { continue }
      guard result.count > 1 else { throw cursor.failure("a tuple of one entry needs a comma") }
      try cursor.expect(")")
      break
    }
    return result
  }

  /// A header of version 1.0, as NumPy writes it.
  static func encode(
    _ type: DataType,
    shape: [Int],
    path: String
  ) throws(TensorFileError) -> [UInt8] {
    let sizes = shape.map(String.init).joined(separator: ", ") + (shape.count == 1 ? "," : "")
    let text = "{'descr': '\(type.rawValue)', 'fortran_order': False, 'shape': (\(sizes)), }"
    // The elements begin at a multiple of 64; 10 bytes come before the text and one ends it.
    let padding = String(repeating: " ", count: -(10 + text.utf8.count + 1) & 63)
    let length = text.utf8.count + padding.utf8.count + 1
    guard length <= longest else {
      throw TensorFileError(.tooLarge, path: path, "shape \(shape) is too long for the header")
    }
    let prefix = magic + [1, 0, UInt8(length & 0xFF), UInt8(length >> 8)]
    return prefix + Array((text + padding + "\n").utf8)
  }
}
