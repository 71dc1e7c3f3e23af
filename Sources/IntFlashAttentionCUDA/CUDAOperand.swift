internal import CAttentionKernels
import IntFlashAttention

extension CUDACall {
  /// A tensor in device memory, with neighbours in its last dimension side by side.
  struct Operand {
    let address: UInt64
    let elementType: ElementType
    let shape: [Int]
    let strides: [Int]

    init(address: UInt64, elementType: ElementType, shape: [Int], strides: [Int]) {
      self.address = address
      self.elementType = elementType
      self.shape = shape
      self.strides = strides
    }

    init(_ tensor: borrowing DeviceTensor) {
      address = tensor.place
      elementType = tensor.elementType
      shape = tensor.shape
      strides = tensor.strides
    }
  }

  /// log2(e), in front of every logit: the kernels count in powers of two.
  static let log2e: Float = 1.442695041
  /// Rows of a block in the kernels that give a warp a row.
  private static let rowsPerBlock = 8

  static func rowBlocks(_ rows: Int) -> Int { (rows + rowsPerBlock - 1) / rowsPerBlock }

  /// Throws where a tensor is not what a call needs.
  static func require(
    _ tensor: borrowing DeviceTensor,
    _ name: String,
    _ shape: [Int],
    _ types: [ElementType] = [.float32, .float16, .bfloat16]
  ) throws(AttentionError) {
    guard tensor.shape == shape else {
      throw AttentionError(
        .shapeMismatch,
        "\(name) has shape \(tensor.shape), but the call needs \(shape)"
      )
    }
    guard types.contains(tensor.elementType) else {
      throw AttentionError(
        .unsupportedElementType,
        "\(name) is \(tensor.elementType.rawValue); it must be one of "
          + types.map(\.rawValue).joined(separator: ", ")
      )
    }
  }

  /// Throws where a result reaches into the memory of another tensor, or twice into its own.
  static func requireOwnMemory(
    output: Operand,
    logSumExp: Operand?,
    apartFrom inputs: KeyValuePairs<String, Operand>
  ) throws(AttentionError) {
    try requireOwnMemory(output, "output", apartFrom: inputs)
    guard let logSumExp else { return }
    try requireOwnMemory(logSumExp, "logSumExp", apartFrom: inputs)
    try requireOwnMemory(logSumExp, "logSumExp", apartFrom: ["output": output])
  }

  private static func requireOwnMemory(
    _ output: Operand,
    _ name: String,
    apartFrom others: KeyValuePairs<String, Operand>
  ) throws(AttentionError) {
    try OverlapCheck.requireDistinctElements(output.shape, output.strides, name: name)
    for (other, operand) in others where output.reach.overlaps(operand.reach) {
      throw AttentionError(.overlappingOutput, "\(name) and \(other) overlap in device memory")
    }
  }

  /// Channels per block of the rotation; 1 is none.
  static func rotation(_ dimension: Int, _ isRotated: Bool) -> Int32 {
    isRotated ? Int32(HadamardRotation(dimension: dimension).blockLength) : 1
  }
}

extension CUDACall.Operand {
  /// The rows of a [B, H, N, D] tensor as kernels take them.
  var rows: intfa_cuda_rows {
    var rows = intfa_cuda_rows()
    rows.base = address
    rows.batch_stride = Int64(strides[0])
    rows.head_stride = Int64(strides[1])
    rows.token_stride = Int64(strides[2])
    rows.format = elementType.deviceFormat
    rows.batch_heads = Int32(shape[1])
    rows.heads = Int32(shape[0] * shape[1])
    rows.tokens = Int32(shape[2])
    rows.dimension = Int32(shape[3])
    return rows
  }

  /// The addresses from its first element to its last.
  var reach: Range<UInt64> {
    guard !shape.contains(0) else { return address..<address }
    let last = zip(shape, strides).reduce(0) { $0 + ($1.0 - 1) * $1.1 }
    return address..<address + UInt64((last + 1) * elementType.bitWidth / 8)
  }

  /// Tokens `range` of it.
  func tokens(_ range: Range<Int>) -> CUDACall.Operand {
    let offset = range.lowerBound * strides[2] * elementType.bitWidth / 8
    return CUDACall.Operand(
      address: address + UInt64(offset),
      elementType: elementType,
      shape: [shape[0], shape[1], range.count, shape[3]],
      strides: strides
    )
  }
}

extension ElementType {
  /// The number that the kernels have for it.
  var deviceFormat: Int32 {
    switch self {
    case .float16: Int32(INTFA_CUDA_FLOAT16)
    case .bfloat16: Int32(INTFA_CUDA_BFLOAT16)
    default: Int32(INTFA_CUDA_FLOAT32)
    }
  }
}

extension CUDAMethod {
  /// log2 of the codes that P = 1 has.
  var log2Levels: Float {
    switch self {
    case .int8: 7.994353437  // 255
    case .int8Paper: 6.988684687  // 127
    case .float: 0
    }
  }
}
