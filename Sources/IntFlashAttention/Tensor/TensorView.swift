/// A borrowed, read-only view of an N-dimensional tensor: a place, a type, a shape and strides.
///
/// Strides count elements and may be any integers, also negative or zero, as long as every element
/// lies inside the memory that is borrowed. The view cannot outlive that memory. Making, slicing and
/// permuting views never copies elements.
@safe
public struct TensorView: ~Escapable {
  /// The byte that holds element [0, 0, …].
  package let base: UnsafeRawPointer
  /// How elements are stored.
  public let elementType: ElementType
  /// Sizes, outermost first.
  public let shape: [Int]
  /// Distance between neighbours along each dimension, in elements; 0 where there are none.
  public let strides: [Int]

  @_lifetime(immortal)
  package init(
    unsafeBase base: UnsafeRawPointer,
    elementType: ElementType,
    shape: [Int],
    strides: [Int]
  ) {
    unsafe self.base = base
    self.elementType = elementType
    self.shape = shape
    self.strides = strides
  }

  /// A view of elements in memory that the caller owns.
  ///
  /// - Parameters:
  ///   - elements: the memory; it is borrowed for the life of the view.
  ///   - shape: sizes, outermost first.
  ///   - strides: in elements; nil is row-major without gaps.
  ///   - offset: the index in `elements` of element [0, 0, …].
  /// - Throws: `AttentionError` with code `.invalidArgument` where a size is negative, the ranks
  ///   differ, or an element would lie outside `elements`.
  @_lifetime(copy elements)
  public init<Element: TensorElement>(
    _ elements: Span<Element>,
    shape: [Int],
    strides: [Int]? = nil,
    offset: Int = 0
  ) throws(AttentionError) {
    let count = elements.count
    let type = Element.elementType
    _ = try TensorGeometry.storageCount(shape, type)
    let strides = strides ?? TensorGeometry.contiguousStrides(shape, type)
    let reach = try TensorGeometry.reach(shape: shape, strides: strides, offset: offset)
    if let reach {
      guard reach.lowerBound >= 0, reach.upperBound < count else {
        throw AttentionError(
          .invalidArgument,
          "shape \(shape) with strides \(strides) and offset \(offset) reaches elements "
            + "\(reach.lowerBound)…\(reach.upperBound), but there are \(count)"
        )
      }
    }
    let pointer = unsafe elements.withUnsafeBytes { $0.baseAddress }
    let bytes = reach == nil ? 0 : offset * MemoryLayout<Element>.stride
    let start = unsafe pointer.map { unsafe $0 + bytes }
    let view = unsafe TensorView(
      unsafeBase: start ?? TensorView.nothing,
      elementType: type,
      shape: shape,
      strides: TensorGeometry.usedStrides(shape, strides, type)
    )
    self = unsafe _overrideLifetime(view, copying: elements)
  }

  /// A non-null address for views without elements; it is never read.
  package static var nothing: UnsafeRawPointer {
    unsafe UnsafeRawPointer(bitPattern: 64).unsafelyUnwrapped
  }

  /// Number of dimensions.
  public var rank: Int { shape.count }

  /// Number of elements.
  public var count: Int { shape.reduce(1, *) }

  /// The element at these indices as float32.
  ///
  /// - Precondition: one index per dimension, each inside the shape.
  public subscript(indices: Int...) -> Float { self[indices] }

  /// The element at these indices as float32.
  ///
  /// - Precondition: one index per dimension, each inside the shape.
  public subscript(indices: [Int]) -> Float {
    precondition(indices.count == shape.count, "one index per dimension")
    var offset = 0
    for axis in shape.indices {
      precondition(indices[axis] >= 0 && indices[axis] < shape[axis], "index inside the shape")
      offset += indices[axis] * strides[axis]
    }
    return float(atOffset: offset)
  }

  /// The element `offset` elements after the first, as float32; the caller knows that it exists.
  package func float(atOffset offset: Int) -> Float {
    switch elementType {
    case .float32: unsafe base.loadUnaligned(fromByteOffset: 4 * offset, as: Float.self)
    case .float16:
      Half.float(unsafe base.loadUnaligned(fromByteOffset: 2 * offset, as: UInt16.self))
    case .bfloat16:
      BFloat16(bitPattern: unsafe base.loadUnaligned(fromByteOffset: 2 * offset, as: UInt16.self))
        .float
    case .float8: Float8(bitPattern: unsafe base.load(fromByteOffset: offset, as: UInt8.self)).float
    case .int8: Float(unsafe base.load(fromByteOffset: offset, as: Int8.self))
    case .int4:
      Float(
        offset & 1 == 0
          ? Int4.unpack(unsafe base.load(fromByteOffset: offset >> 1, as: UInt8.self)).low
          : Int4.unpack(unsafe base.load(fromByteOffset: offset >> 1, as: UInt8.self)).high
      )
    }
  }

  /// The same elements with dimensions in another order, for instance `[0, 2, 1, 3]`.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument` unless `order` names each dimension
  ///   once.
  @_lifetime(copy self)
  public func permuted(_ order: [Int]) throws(AttentionError) -> TensorView {
    guard order.sorted() == Array(shape.indices) else {
      throw AttentionError(
        .invalidArgument,
        "order \(order) must name each of the \(rank) dimensions once"
      )
    }
    return unsafe _overrideLifetime(
      TensorView(
        unsafeBase: base,
        elementType: elementType,
        shape: order.map { shape[$0] },
        strides: order.map { strides[$0] }
      ),
      copying: self
    )
  }

  /// The same elements as `[batch, heads, tokens, dimension]`, given how they are stored.
  ///
  /// A tensor of rank 3 is a batch of one.
  ///
  /// - Parameter layout: the order in which the dimensions are stored now.
  /// - Returns: the view with the dimensions in attention's order.
  /// - Throws: `AttentionError` with code `.invalidArgument` for a rank other than 3 and 4.
  @_lifetime(copy self)
  public func operand(_ layout: TensorLayout = .batchHeadsTokens) throws(AttentionError)
    -> TensorView
  {
    guard rank == 3 || rank == 4 else {
      throw AttentionError(
        .invalidArgument,
        "shape \(shape) has \(rank) dimensions; attention takes 4, or 3 for a batch of one"
      )
    }
    let batched = unsafe _overrideLifetime(
      TensorView(
        unsafeBase: base,
        elementType: elementType,
        shape: rank == 3 ? [1] + shape : shape,
        strides: rank == 3 ? [0] + strides : strides
      ),
      copying: self
    )
    return layout == .batchHeadsTokens ? batched : try batched.permuted([0, 2, 1, 3])
  }

  /// Every element as float32 in row-major order: a copy.
  public func copyFloats() -> [Float] {
    var result: [Float] = []
    result.reserveCapacity(count)
    forEachRow { offset in
      let step = strides.last ?? 1
      for column in 0..<(shape.last ?? 1) { result.append(float(atOffset: offset + column * step)) }
    }
    return result
  }

  /// Calls `body` with the element offset of every innermost row, in row-major order.
  package func forEachRow(_ body: (Int) -> Void) {
    guard shape.allSatisfy({ $0 > 0 }) else { return }
    let outer = shape.dropLast()
    var index = [Int](repeating: 0, count: outer.count)
    var offset = 0
    while true {
      body(offset)
      var axis = outer.count - 1
      while axis >= 0 {
        index[axis] += 1
        offset += strides[axis]
        if index[axis] < outer[axis] { break }
        offset -= strides[axis] * outer[axis]
        index[axis] = 0
        axis -= 1
      }
      if axis < 0 { return }
    }
  }

  /// The bytes that the elements lie in, or nil where there are none.
  package var byteRange: Range<UInt>? {
    guard
      let reach = try? TensorGeometry.reach(shape: shape, strides: strides, offset: 0)
    else { return nil }
    let start = unsafe UInt(bitPattern: base)
    let bits = elementType.bitWidth
    let low = start &+ UInt(bitPattern: (reach.lowerBound * bits) >> 3)
    let high = start &+ UInt(bitPattern: (reach.upperBound * bits + bits + 7) >> 3)
    return low..<high
  }
}
