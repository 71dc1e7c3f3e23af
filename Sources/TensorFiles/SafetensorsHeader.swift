/// The header of a `.safetensors` file, checked against the bytes that follow it.
struct SafetensorsHeader {
  /// A longer header is refused, as by the official reader.
  static let longest = 100_000_000
  /// More dimensions than NumPy and PyTorch have.
  private static let mostDimensions = 64
  /// The key that is not a tensor.
  static let metadataKey = "__metadata__"

  private(set) var entries: [String: SafetensorsEntry] = [:]
  private(set) var metadata: [String: String] = [:]
  /// Where the data section begins.
  let dataOffset: Int

  /// Reads and checks the header of `file`.
  init(_ file: Span<UInt8>, path: String) throws(TensorFileError) {
    guard file.count >= 8 else {
      throw TensorFileError(
        .truncated,
        path: path,
        "\(file.count) bytes; a .safetensors file begins with a length of 8 bytes"
      )
    }
    let length = file.littleEndian(0..<8)
    guard length <= Self.longest else {
      throw TensorFileError(
        .tooLarge,
        path: path,
        "header of \(length) bytes; at most \(Self.longest) are allowed"
      )
    }
    guard length <= file.count - 8 else {
      throw TensorFileError(
        .truncated,
        path: path,
        "header of \(length) bytes, but only \(file.count - 8) follow its length"
      )
    }
    dataOffset = 8 + Int(length)
    var cursor = ByteCursor(file.extracting(8..<dataOffset), path: path)
    guard cursor.next == UInt8(ascii: "{") else {
      throw cursor.failure("the header must begin with '{'")
    }
    try readMembers(&cursor)
    try checkLayout(dataCount: file.count - dataOffset, path: path)
  }

  private mutating func readMembers(_ cursor: inout ByteCursor) throws(TensorFileError) {
    var hasMetadata = false
    var isFirst = true
    try cursor.expect("{")
    while try cursor.hasElement(before: "}", isFirst: &isFirst) {
      let name = try cursor.jsonString()
      try cursor.expect(":")
      if name == Self.metadataKey {
        guard !hasMetadata else { throw cursor.failure("\(name) occurs twice") }
        hasMetadata = true
        try readMetadata(&cursor)
      } else {
        guard entries[name] == nil else {
          throw cursor.failure("tensor \(name.quoted) occurs twice")
        }
        entries[name] = try Self.readEntry(name, &cursor)
      }
    }
    cursor.skipBlanks()
    guard cursor.next == nil else { throw cursor.failure("text after the closing '}'") }
  }

  private mutating func readMetadata(_ cursor: inout ByteCursor) throws(TensorFileError) {
    var isFirst = true
    try cursor.expect("{")
    while try cursor.hasElement(before: "}", isFirst: &isFirst) {
      let key = try cursor.jsonString()
      try cursor.expect(":")
      let value = try cursor.jsonString()
      guard metadata.updateValue(value, forKey: key) == nil else {
        throw cursor.failure("metadata key \(key.quoted) occurs twice")
      }
    }
  }

  private static func readEntry(
    _ name: String,
    _ cursor: inout ByteCursor
  ) throws(TensorFileError) -> SafetensorsEntry {
    var dtype: String?
    var shape: [Int]?
    var offsets: [Int]?
    var isFirst = true
    try cursor.expect("{")
    while try cursor.hasElement(before: "}", isFirst: &isFirst) {
      let key = try cursor.jsonString()
      try cursor.expect(":")
      switch key {
      case "dtype" where dtype == nil: dtype = try cursor.jsonString()
      case "shape" where shape == nil:
        shape = try sizes(&cursor, "a size in the shape of \(name.quoted)", atMost: mostDimensions)
      case "data_offsets" where offsets == nil:
        offsets = try sizes(&cursor, "an offset of \(name.quoted)", atMost: 2)
      // A key that we do not know could change what the others mean, so it is not skipped.
      default:
        throw cursor.failure(
          "key \(key.quoted) of tensor \(name.quoted) is repeated or is none of "
            + "dtype, shape, data_offsets"
        )
      }
    }
    guard let dtype, let shape, let offsets else {
      throw cursor.failure("tensor \(name.quoted) needs each of dtype, shape and data_offsets")
    }
    guard let type = SafetensorsDataType(rawValue: dtype) else {
      let known = SafetensorsDataType.allCases.map(\.rawValue).joined(separator: ", ")
      throw cursor.failure(
        "dtype \(dtype.quoted) of tensor \(name.quoted) is none of \(known)",
        code: .unsupportedType
      )
    }
    guard offsets.count == 2, offsets[0] <= offsets[1] else {
      throw cursor.failure(
        "data_offsets \(offsets) of tensor \(name.quoted) must be a begin and an end after it"
      )
    }
    guard let bits = storedBitCount(shape, bitWidth: type.bitWidth) else {
      throw cursor.failure(
        "shape \(shape) of tensor \(name.quoted): its size in bits is above \(Int.max)",
        code: .tooLarge
      )
    }
    guard bits % 8 == 0, bits / 8 == offsets[1] - offsets[0] else {
      throw cursor.failure(
        "data_offsets \(offsets) of tensor \(name.quoted) span \(offsets[1] - offsets[0]) bytes, "
          + "but shape \(shape) of \(dtype) takes \(bits) bits"
      )
    }
    return SafetensorsEntry(name: name, shape: shape, type: type, range: offsets[0]..<offsets[1])
  }

  /// An array of whole numbers.
  private static func sizes(
    _ cursor: inout ByteCursor,
    _ role: String,
    atMost limit: Int
  ) throws(TensorFileError) -> [Int] {
    var result: [Int] = []
    var isFirst = true
    try cursor.expect("[")
    while try cursor.hasElement(before: "]", isFirst: &isFirst) {
      guard result.count < limit else {
        throw cursor.failure("\(role): there are more than \(limit) entries")
      }
      result.append(try cursor.size(role))
    }
    return result
  }

  /// The format wants tensors to fill the data section: no overlap, no gap, nothing left over.
  private func checkLayout(dataCount: Int, path: String) throws(TensorFileError) {
    let sorted = entries.values.sorted {
      ($0.range.lowerBound, $0.range.upperBound) < ($1.range.lowerBound, $1.range.upperBound)
    }
    var end = 0
    for entry in sorted {
      let (begin, quoted) = (entry.range.lowerBound, entry.name.quoted)
      guard entry.range.upperBound <= dataCount else {
        throw TensorFileError(
          .truncated,
          path: path,
          "tensor \(quoted) ends at byte \(entry.range.upperBound) of \(dataCount) bytes of data"
        )
      }
      guard begin == end else {
        let fault = begin < end ? "overlaps the tensor before it" : "leaves a gap before it"
        throw TensorFileError(
          .malformed,
          path: path,
          "tensor \(quoted) begins at byte \(begin) of the data, which \(fault) "
            + "(the data before it ends at byte \(end))"
        )
      }
      end = entry.range.upperBound
    }
    guard end == dataCount else {
      throw TensorFileError(
        .malformed,
        path: path,
        "\(dataCount - end) bytes follow the last tensor; the format allows none"
      )
    }
  }
}
