public import IntFlashAttention

/// A `.safetensors` file, opened for reading.
///
/// The file is mapped into memory, not loaded; `tensor(_:)` copies what is asked for. Everything
/// that the header claims is checked on opening, so a damaged or hostile file gives an error and
/// nothing else. The file must not be shortened while it is open; replacing it by renaming, as
/// ``SafetensorsWriter`` does, is harmless.
public struct SafetensorsFile: ~Copyable, Sendable {
  private let file: FileBytes
  private let header: SafetensorsHeader

  /// Opens a file and checks its header.
  ///
  /// Stricter than the official reader in one thing: a key of a tensor other than `dtype`, `shape`
  /// and `data_offsets` is refused.
  ///
  /// - Throws: `TensorFileError` with code `.cannotOpen`, `.truncated`, `.malformed`,
  ///   `.unsupportedType` for a dtype that the format does not have, or `.tooLarge` for a header
  ///   above 100 MB, a size beyond `Int` or more than 1 GiB from a pipe.
  public init(path: String) throws(TensorFileError) {
    let file = try FileBytes(path: path)
    self.header = try SafetensorsHeader(file.bytes, path: path)
    self.file = file
  }

  /// Reads a file that is already in memory, of which it keeps a copy.
  ///
  /// - Parameters:
  ///   - bytes: the whole file.
  ///   - name: what messages call it.
  /// - Throws: as ``init(path:)``, but for `.cannotOpen`.
  public init(bytes: Span<UInt8>, name: String) throws(TensorFileError) {
    let file = try FileBytes(copying: bytes, name: name)
    self.header = try SafetensorsHeader(file.bytes, path: name)
    self.file = file
  }

  /// The file, as it was named.
  public var path: String { file.path }

  /// The names of all tensors, sorted by their UTF-8 bytes.
  public var tensorNames: [String] { header.entries.keys.sortedByBytes() }

  /// The free text that the file carries, by key.
  public var metadata: [String: String] { header.metadata }

  /// What the header says about a tensor.
  ///
  /// - Throws: `TensorFileError` with code `.unknownTensor`, listing the names that exist.
  public func entry(_ name: String) throws(TensorFileError) -> SafetensorsEntry {
    if let entry = header.entries[name] { return entry }
    let (names, shown) = (tensorNames, 20)
    let list = names.prefix(shown).map(\.quoted).joined(separator: ", ")
    let rest = names.count > shown ? " and \(names.count - shown) more" : ""
    throw TensorFileError(
      .unknownTensor,
      path: path,
      "no tensor \(name.quoted); there \(names.isEmpty ? "are none" : "is \(list)\(rest)")"
    )
  }

  /// A copy of a tensor.
  ///
  /// F32, F16, BF16, F8_E4M3, I8 and BOOL (as int8) keep their bits. F64 is rounded to float32: to nearest, beyond
  /// the range of float32 to infinity.
  ///
  /// - Throws: `TensorFileError` with code `.unknownTensor`, `.unsupportedType` for any other dtype,
  ///   or `.tooLarge` where there is no memory.
  public func tensor(_ name: String) throws(TensorFileError) -> Tensor {
    let entry = try entry(name)
    if entry.type == .float64 {
      return try file.tensorOfDoubles(shape: entry.shape, in: place(entry))
    }
    guard let type = entry.type.elementType else {
      throw TensorFileError(
        .unsupportedType,
        path: path,
        "tensor \(name.quoted) has dtype \(entry.dtype); "
          + "F32, F16, BF16, F8_E4M3, I8, BOOL and F64 can be read"
      )
    }
    return try file.tensor(type, shape: entry.shape, in: place(entry))
  }

  /// A copy of a tensor of packed 4-bit integers, which the format stores as U8.
  ///
  /// - Parameters:
  ///   - name: a tensor of dtype U8, two elements to a byte as `Int4` says.
  ///   - shape: the sizes in elements. The stored shape is the same, but with ⌈D/2⌉ instead of D as
  ///     last size.
  /// - Returns: an `.int4` tensor of that shape.
  /// - Throws: `TensorFileError` with code `.unknownTensor`, `.unsupportedType` unless the dtype is
  ///   U8, `.shapeMismatch`, or `.tooLarge` where there is no memory.
  public func packedInt4Tensor(_ name: String, shape: [Int]) throws(TensorFileError) -> Tensor {
    let entry = try entry(name)
    guard entry.type == .uint8 else {
      throw TensorFileError(
        .unsupportedType,
        path: path,
        "tensor \(name.quoted) has dtype \(entry.dtype); packed 4-bit integers are stored as U8"
      )
    }
    let packed = packedInt4Shape(shape)
    guard shape.allSatisfy({ $0 >= 0 }), packed == entry.shape else {
      throw TensorFileError(
        .shapeMismatch,
        path: path,
        "tensor \(name.quoted) has shape \(entry.shape); 4-bit integers of shape \(shape) "
          + "are stored as \(packed)"
      )
    }
    return try file.tensor(.int4, shape: shape, in: place(entry))
  }

  /// The bytes of the file that hold a tensor.
  private func place(_ entry: SafetensorsEntry) -> Range<Int> {
    header.dataOffset + entry.range.lowerBound..<header.dataOffset + entry.range.upperBound
  }
}

/// The shape in bytes of 4-bit integers whose rows begin at bytes.
func packedInt4Shape(_ shape: [Int]) -> [Int] {
  guard let last = shape.last else { return shape }
  return shape.dropLast() + [last / 2 + last % 2]
}

extension Sequence<String> {
  /// Sorted by UTF-8 bytes, the order of the official writer.
  func sortedByBytes() -> [String] {
    sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
  }
}
