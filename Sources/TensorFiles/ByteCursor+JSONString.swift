extension ByteCursor {
  /// A JSON string in quotes, after blanks.
  ///
  /// - Throws: `.malformed` for anything that RFC 8259 does not allow in a string.
  @_lifetime(self: copy self)
  mutating func jsonString() throws(TensorFileError) -> String {
    try expect("\"")
    var code: [UInt8] = []
    while let byte = next {
      position += 1
      switch byte {
      case UInt8(ascii: "\""):
        guard let text = String(validating: code, as: UTF8.self) else {
          throw failure("the string that ends here is not UTF-8")
        }
        return text
      case UInt8(ascii: "\\"): code.append(contentsOf: String(Character(try jsonEscape())).utf8)
      case ..<0x20: throw failure("control character \(byte) in a string must be escaped")
      default: code.append(byte)
      }
    }
    throw failure("a string has no closing quote")
  }

  /// The character that the rest of an escape sequence stands for.
  @_lifetime(self: copy self)
  private mutating func jsonEscape() throws(TensorFileError) -> Unicode.Scalar {
    let kind = next.map { Unicode.Scalar($0) } ?? "\0"
    position += 1
    switch kind {
    case "\"", "\\", "/": return kind
    case "b": return "\u{08}"
    case "f": return "\u{0C}"
    case "n": return "\n"
    case "r": return "\r"
    case "t": return "\t"
    case "u":
      var value = try hexDigits()
      if 0xD800..<0xDC00 ~= value, next == UInt8(ascii: "\\") {
        position += 1
        guard next == UInt8(ascii: "u") else { throw failure("half a surrogate pair") }
        position += 1
        let low = try hexDigits()
        guard 0xDC00..<0xE000 ~= low else { throw failure("half a surrogate pair") }
        value = 0x10000 + (value - 0xD800) << 10 + (low - 0xDC00)
      }
      guard let scalar = Unicode.Scalar(value) else { throw failure("half a surrogate pair") }
      return scalar
    default: throw failure("an escape sequence that JSON does not have")
    }
  }

  @_lifetime(self: copy self)
  private mutating func hexDigits() throws(TensorFileError) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      guard let digit = next.flatMap({ Character(Unicode.Scalar($0)).hexDigitValue }) else {
        throw failure("\\u needs four hexadecimal digits")
      }
      value = value << 4 | UInt32(digit)
      position += 1
    }
    return value
  }
}

extension String {
  /// This text as a JSON string in quotes, with no more escapes than JSON needs.
  var jsonQuoted: String {
    var result = "\""
    for scalar in unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\u{08}": result += "\\b"
      case "\u{0C}": result += "\\f"
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      case "\0"..<" ":
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}
