import CIntFlashAttention
import IntFlashAttention

/// A tensor of the caller, checked as far as a pointer can be.
enum CTensor {
  /// Bytes between the first and the last element of a tensor stay below this, the largest address
  /// space of a process.
  private static let largestReach = 1 << 48

  /// An argument as an operand, which must not outlive the call.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument` or `.unsupportedElementType`.
  static func operand(
    _ pointer: UnsafePointer<intfa_tensor>?,
    _ name: String
  ) throws(AttentionError) -> AttentionOperands.Operand {
    let tensor = unsafe try CStruct.read(pointer, name, intfa_tensor())
    let type = try elementType(unsafe tensor.element_type, name)
    let rank = unsafe tensor.rank
    guard (1...4).contains(rank) else {
      throw AttentionError(
        .invalidArgument,
        "\(name): rank is \(rank); it must be between 1 and 4"
      )
    }
    let shape = unsafe integers(try require(tensor.shape, "\(name): shape"), Int(rank))
    let strides: [Int]
    do throws(AttentionError) {
      _ = try TensorGeometry.storageCount(shape, type)
      strides = TensorGeometry.usedStrides(
        shape,
        unsafe tensor.strides.map { unsafe integers($0, Int(rank)) },
        type
      )
      try unsafe checkMemory(tensor.data, shape: shape, strides: strides, type)
    } catch {
      throw AttentionError(error.code, "\(name): \(error.message)")
    }
    return unsafe AttentionOperands.Operand(
      TensorView(
        unsafeBase: UnsafeRawPointer(tensor.data) ?? TensorView.nothing,
        elementType: type,
        shape: shape,
        strides: strides
      )
    )
  }

  /// As ``operand(_:_:)``, or nil for NULL.
  static func optionalOperand(
    _ pointer: UnsafePointer<intfa_tensor>?,
    _ name: String
  ) throws(AttentionError) -> AttentionOperands.Operand? {
    unsafe pointer == nil ? nil : try operand(pointer, name)
  }

  private static func checkMemory(
    _ data: UnsafeMutableRawPointer?,
    shape: [Int],
    strides: [Int],
    _ type: ElementType
  ) throws(AttentionError) {
    guard let reach = try TensorGeometry.reach(shape: shape, strides: strides, offset: 0) else {
      return
    }
    guard let data = unsafe data else {
      throw AttentionError(.invalidArgument, "data is NULL, but shape \(shape) has elements")
    }
    let address = Int(bitPattern: data)
    let size = max(type.bitWidth / 8, 1)
    guard address.isMultiple(of: size) else {
      throw AttentionError(
        .invalidArgument,
        "data is not aligned to the \(size) bytes of a \(type.rawValue)"
      )
    }
    let largest = largestReach / size
    guard reach.lowerBound > -largest, reach.upperBound < largest,
      // Addresses of a process are not negative as a signed number.
      address > 0, address + reach.lowerBound * size > 0,
      address <= Int.max - largestReach
    else {
      throw AttentionError(
        .invalidArgument,
        "shape \(shape) with strides \(strides) reaches elements \(reach.lowerBound) to "
          + "\(reach.upperBound), beyond all memory"
      )
    }
  }

  private static func integers(_ numbers: UnsafePointer<Int64>, _ count: Int) -> [Int] {
    unsafe UnsafeBufferPointer(start: numbers, count: count).map(Int.init)
  }

  private static func elementType(
    _ type: intfa_element_type,
    _ name: String
  ) throws(AttentionError) -> ElementType {
    switch Int(type) {
    case INTFA_FLOAT32: return .float32
    case INTFA_FLOAT16: return .float16
    case INTFA_BFLOAT16: return .bfloat16
    case INTFA_FLOAT8: return .float8
    case INTFA_INT8, INTFA_BOOL: return .int8
    case INTFA_INT4: return .int4
    default:
      throw AttentionError(
        .unsupportedElementType,
        "\(name): element_type is \(type), which is not one of intfa_element_type"
      )
    }
  }
}

extension ElementType {
  var cType: intfa_element_type {
    let number =
      switch self {
      case .float32: INTFA_FLOAT32
      case .float16: INTFA_FLOAT16
      case .bfloat16: INTFA_BFLOAT16
      case .float8: INTFA_FLOAT8
      case .int8: INTFA_INT8
      case .int4: INTFA_INT4
      }
    return intfa_element_type(number)
  }
}
