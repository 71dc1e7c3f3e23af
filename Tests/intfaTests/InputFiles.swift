import AttentionTestSupport
import IntFlashAttention
import TensorFiles

/// Small files for `intfa` to read.
enum InputFiles {
  /// Grouped-query operands with more queries than keys share a tile.
  static func shape(
    batch: Int = 1,
    queryHeads: Int = 4,
    keyValueHeads: Int = 2,
    queryLength: Int = 70,
    keyValueLength: Int = 90,
    dimension: Int = 16,
    valueDimension: Int = 12
  ) throws -> AttentionShape {
    try AttentionShape(
      batchCount: batch,
      queryHeadCount: queryHeads,
      keyValueHeadCount: keyValueHeads,
      queryLength: queryLength,
      keyValueLength: keyValueLength,
      headDimension: dimension,
      valueDimension: valueDimension
    )
  }

  /// Writes q, k and v, and o where it is given.
  static func write(
    _ inputs: TestInputs,
    to path: String,
    rank: Int = 4,
    layout: TensorLayout = .batchHeadsTokens,
    elementType: ElementType = .float32,
    output: [Float]? = nil,
    outputShape: [Int]? = nil,
    metadata: [String: String] = [:]
  ) throws {
    var writer = SafetensorsWriter(metadata: metadata)
    let shape = inputs.shape
    var tensors = [
      ("q", inputs.query, shape.queryShape), ("k", inputs.key, shape.keyShape),
      ("v", inputs.value, shape.valueShape),
    ]
    if let output { tensors.append(("o", output, outputShape ?? shape.outputShape)) }
    for (name, values, sizes) in tensors {
      let tensor = try Tensor(
        values,
        shape: rank == 3 ? Array(sizes.dropFirst()) : sizes,
        elementType: elementType
      )
      let order = rank == 3 ? [1, 0, 2] : [0, 2, 1, 3]
      let isPermuted = layout == .batchTokensHeads
      writer.add(name, isPermuted ? try tensor.view.permuted(order) : tensor.view)
    }
    try writer.write(to: path)
  }

  /// A tensor of a file, row-major.
  static func values(_ name: String, of path: String) throws -> [Float] {
    try SafetensorsFile(path: path).tensor(name).copyFloats()
  }
}
