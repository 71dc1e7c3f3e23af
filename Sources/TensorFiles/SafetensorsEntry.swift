/// What a `.safetensors` header says about one tensor.
public struct SafetensorsEntry: Sendable, Hashable {
  /// The name.
  public let name: String
  /// Sizes, outermost first.
  public let shape: [Int]
  /// The number format.
  let type: SafetensorsDataType
  /// The bytes of the data section that hold the tensor.
  let range: Range<Int>

  /// The number format as the file names it, for instance "BF16".
  public var dtype: String { type.rawValue }

  /// Bytes that the tensor takes in the file.
  public var byteCount: Int { range.count }
}
