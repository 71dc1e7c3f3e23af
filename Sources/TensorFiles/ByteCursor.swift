/// Reads the text of a header from front to back; a failure names the file and the place.
///
/// There is no tree of values and no recursion: the caller asks for what must come next, so depth
/// and memory are bounded whatever the file holds.
struct ByteCursor: ~Escapable {
  /// The text.
  let bytes: Span<UInt8>
  /// The file, for messages.
  let path: String
  /// The next byte to read.
  var position = 0

  @_lifetime(copy bytes)
  init(_ bytes: Span<UInt8>, path: String) {
    self.bytes = bytes
    self.path = path
  }

  /// The next byte, or nil at the end.
  var next: UInt8? { position < bytes.count ? bytes[position] : nil }

  /// An error at this place.
  func failure(
    _ rule: String,
    code: TensorFileError.Code = .malformed
  ) -> TensorFileError {
    TensorFileError(code, path: path, "header, byte \(position): \(rule)")
  }

  /// Passes over blanks.
  @_lifetime(self: copy self)
  mutating func skipBlanks() {
    while let byte = next, byte == 0x20 || 0x09...0x0A ~= byte || byte == 0x0D { position += 1 }
  }

  /// Passes over `character` if it comes next, after blanks.
  @_lifetime(self: copy self)
  mutating func skip(_ character: Unicode.Scalar) -> Bool {
    skipBlanks()
    guard next == UInt8(ascii: character) else { return false }
    position += 1
    return true
  }

  /// Passes over `character`, which must come next, after blanks.
  @_lifetime(self: copy self)
  mutating func expect(_ character: Unicode.Scalar) throws(TensorFileError) {
    guard skip(character) else {
      throw failure("expected '\(character)', found \(found)")
    }
  }

  /// Whether a list goes on: passes over the comma before an element or over the end of the list.
  @_lifetime(self: copy self)
  mutating func hasElement(
    before end: Unicode.Scalar,
    isFirst: inout Bool
  ) throws(TensorFileError) -> Bool {
    guard !skip(end) else { return false }
    if !isFirst { try expect(",") }
    isFirst = false
    return true
  }

  /// A size or an offset: decimal digits and nothing else, kept exactly.
  ///
  /// - Throws: `.malformed` for a sign, a fraction, an exponent, a leading zero or no number;
  ///   `.tooLarge` beyond `Int`.
  @_lifetime(self: copy self)
  mutating func size(_ role: String) throws(TensorFileError) -> Int {
    let word = word()
    let digits = word.utf8.allSatisfy { UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }
    guard !word.isEmpty, digits, word == "0" || word.first != "0" else {
      let value = word.isEmpty ? found : word.quoted
      throw failure("\(role) is \(value), which is not a plain whole number of at least 0")
    }
    guard let value = Int(word) else {
      throw failure("\(role) is \(word.quoted), which is above \(Int.max)", code: .tooLarge)
    }
    return value
  }

  /// Letters, digits, signs and points up to the next other byte, after blanks.
  @_lifetime(self: copy self)
  mutating func word() -> String {
    skipBlanks()
    var code: [UInt8] = []
    while let byte = next, Self.isWordByte(byte) {
      code.append(byte)
      position += 1
    }
    return String(decoding: code, as: UTF8.self)
  }

  private static func isWordByte(_ byte: UInt8) -> Bool {
    switch Unicode.Scalar(byte) {
    case "0"..."9", "A"..."Z", "a"..."z", "+", "-", ".", "_": true
    default: false
    }
  }

  /// The next byte in words.
  private var found: String {
    guard let next else { return "the end" }
    return next < 0x80 ? String(Unicode.Scalar(next)).quoted : "byte \(next)"
  }
}

extension Span<UInt8> {
  /// The number that these bytes, eight at most, hold.
  func littleEndian(_ range: Range<Int>) -> UInt64 {
    var number: UInt64 = 0
    for index in range.reversed() { number = number << 8 | UInt64(self[index]) }
    return number
  }
}
