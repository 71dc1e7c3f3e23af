public import IntFlashAttention

/// Snapshots of caches as `.safetensors` files.
///
/// ```swift
/// try cache.snapshot().write(to: "prompt.safetensors")
/// let again = KVCache(in: pool, restoring: try KVCacheSnapshot(path: "prompt.safetensors"))
/// ```
extension KVCacheSnapshot {
  private enum Key: String, CaseIterable {
    case format, version, precision, keyValueHeadCount, headDimension, valueDimension, count
    case firstPosition
  }

  private static let format = "int-flash-attention KVCache"

  /// Writes the snapshot: its tensors, and what they mean in the metadata.
  ///
  /// Equal snapshots give equal files. The file is written beside `path` and renamed.
  ///
  /// - Parameter path: the file.
  /// - Throws: `TensorFileError` with code `.cannotWrite`.
  public func write(to path: String) throws(TensorFileError) {
    var writer = SafetensorsWriter(metadata: [
      Key.format.rawValue: Self.format,
      Key.version.rawValue: "\(Self.version)",
      Key.precision.rawValue: precision.rawValue,
      Key.keyValueHeadCount.rawValue: "\(keyValueHeadCount)",
      Key.headDimension.rawValue: "\(headDimension)",
      Key.valueDimension.rawValue: "\(valueDimension)",
      Key.count.rawValue: "\(count)",
      Key.firstPosition.rawValue: "\(firstPosition)",
    ])
    for name in names {
      guard let part = part(named: name) else { continue }
      part.withView { writer.add(name, $0) }
    }
    try writer.write(to: path)
  }

  /// Reads a snapshot, and checks that every tensor is there and holds what a cache can hold.
  ///
  /// - Parameter path: the file.
  /// - Throws: `TensorFileError` with code `.cannotOpen`, `.truncated`, `.tooLarge`, or `.malformed`
  ///   for a file that is no snapshot, one of another version, or tensors that no cache holds.
  public init(path: String) throws(TensorFileError) {
    let file = try SafetensorsFile(path: path)
    let metadata = file.metadata
    func text(_ key: Key) throws(TensorFileError) -> String {
      guard let text = metadata[key.rawValue] else {
        throw TensorFileError(
          .malformed,
          path: path,
          "no metadata \(key.rawValue.quoted); this is no snapshot of a cache"
        )
      }
      return text
    }
    func number(_ key: Key) throws(TensorFileError) -> Int {
      let text = try text(key)
      guard let number = Int(text) else {
        throw TensorFileError(
          .malformed,
          path: path,
          "metadata \(key.rawValue) is \(text.quoted); it must be a whole number"
        )
      }
      return number
    }
    let format = try text(.format)
    guard format == Self.format else {
      throw TensorFileError(
        .malformed,
        path: path,
        "metadata format is \(format.quoted); a snapshot has \(Self.format.quoted)"
      )
    }
    let version = try text(.version)
    guard version == "\(Self.version)" else {
      throw TensorFileError(
        .malformed,
        path: path,
        "the snapshot has version \(version.quoted); this library reads version \(Self.version)"
      )
    }
    let name = try text(.precision)
    guard let precision = Precision(rawValue: name) else {
      throw TensorFileError(
        .malformed,
        path: path,
        "metadata precision is \(name.quoted), which is no precision"
      )
    }
    let sizes = (
      try number(.keyValueHeadCount), try number(.headDimension), try number(.valueDimension),
      try number(.count), try number(.firstPosition)
    )
    var parts: [String: Part] = [:]
    for name in file.tensorNames { parts[name] = Part(try file.tensor(name)) }
    do throws(AttentionError) {
      try self.init(
        precision: precision,
        keyValueHeadCount: sizes.0,
        headDimension: sizes.1,
        valueDimension: sizes.2,
        count: sizes.3,
        firstPosition: sizes.4,
        parts: parts
      )
    } catch {
      throw TensorFileError(
        error.code == .outOfMemory ? .tooLarge : .malformed,
        path: path,
        error.message
      )
    }
  }
}
