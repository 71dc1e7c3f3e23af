public import IntFlashAttention

/// Collects tensors and writes them as one `.safetensors` file.
///
/// Equal names, tensors and metadata give equal files, byte for byte, in whatever order they were
/// added, and nothing in a file says when or where it was made. The layout is that of the official
/// writer: wide elements first, names in byte order within a type, the header padded with spaces to
/// a multiple of 8.
///
/// ```swift
/// var writer = SafetensorsWriter(metadata: ["precision": "int8"])
/// writer.add("o", output.view)
/// try writer.write(to: "output.safetensors")
/// ```
public struct SafetensorsWriter: Sendable {
  private struct Item: Sendable {
    let name: String
    let type: SafetensorsDataType
    let shape: [Int]
    let bytes: [UInt8]
  }

  private let metadata: [String: String]
  private var items: [Item] = []

  /// A writer without tensors.
  ///
  /// - Parameter metadata: free text for the file to carry, by key.
  public init(metadata: [String: String] = [:]) {
    self.metadata = metadata
  }

  /// Adds a copy of a tensor.
  ///
  /// `.int4` becomes U8 with ⌈D/2⌉ instead of D as last size; see
  /// ``SafetensorsFile/packedInt4Tensor(_:shape:)``. Names are checked when the file is written.
  public mutating func add(_ name: String, _ tensor: TensorView) {
    let isPacked = tensor.elementType == .int4
    items.append(
      Item(
        name: name,
        type: SafetensorsDataType(tensor.elementType),
        shape: isPacked ? packedInt4Shape(tensor.shape) : tensor.shape,
        bytes: tensor.rowMajorBytes()
      )
    )
  }

  /// Writes the file: first beside `path`, then by renaming, so that no failure leaves half of one.
  ///
  /// A device or a pipe is written to directly. A symbolic link is replaced.
  ///
  /// - Throws: `TensorFileError` with code `.invalidName` for a name used twice or `__metadata__`,
  ///   `.tooLarge` for a header above 100 MB, or `.cannotWrite`.
  public func write(to path: String) throws(TensorFileError) {
    var names: Set = [SafetensorsHeader.metadataKey]
    for item in items {
      guard names.insert(item.name).inserted else {
        throw TensorFileError(
          .invalidName,
          path: path,
          "tensor name \(item.name.quoted) is reserved or used twice"
        )
      }
    }
    let sorted = items.sorted {
      $0.type == $1.type
        ? $0.name.utf8.lexicographicallyPrecedes($1.name.utf8)
        : $0.type.rank > $1.type.rank
    }
    let header = Array(headerText(sorted).utf8)
    let padding = [UInt8](repeating: 0x20, count: -header.count & 7)
    let length = header.count + padding.count
    guard length <= SafetensorsHeader.longest else {
      throw TensorFileError(
        .tooLarge,
        path: path,
        "header of \(length) bytes; at most \(SafetensorsHeader.longest) are allowed"
      )
    }
    let prefix = (0..<8).map { UInt8(truncatingIfNeeded: length >> (8 * $0)) }
    try ReplacedFile.replace(path, with: [prefix + header + padding] + sorted.map(\.bytes))
  }

  private func headerText(_ items: [Item]) -> String {
    var members: [String] = []
    if !metadata.isEmpty {
      let pairs = metadata.keys.sortedByBytes().map { key in
        "\(key.jsonQuoted):\((metadata[key] ?? "").jsonQuoted)"
      }
      members.append(
        "\(SafetensorsHeader.metadataKey.jsonQuoted):{\(pairs.joined(separator: ","))}"
      )
    }
    var begin = 0
    for item in items {
      let end = begin + item.bytes.count
      let shape = item.shape.map(String.init).joined(separator: ",")
      members.append(
        "\(item.name.jsonQuoted):{\"dtype\":\"\(item.type.rawValue)\",\"shape\":[\(shape)],"
          + "\"data_offsets\":[\(begin),\(end)]}"
      )
      begin = end
    }
    return "{\(members.joined(separator: ","))}"
  }
}
