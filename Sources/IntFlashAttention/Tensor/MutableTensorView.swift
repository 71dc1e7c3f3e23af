/// A borrowed view of an N-dimensional tensor through which elements can be written.
///
/// It is exclusive: while it exists nothing else reads or writes the memory. Otherwise as
/// ``TensorView``, except that no two elements may share a place.
@safe
public struct MutableTensorView: ~Escapable, ~Copyable {
  package let base: UnsafeMutableRawPointer
  /// How elements are stored.
  public let elementType: ElementType
  /// Sizes, outermost first.
  public let shape: [Int]
  /// Distance between neighbours along each dimension, in elements.
  public let strides: [Int]

  @_lifetime(immortal)
  package init(
    unsafeBase base: UnsafeMutableRawPointer,
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
  ///   - elements: the memory; it is borrowed exclusively for the life of the view.
  ///   - shape: sizes, outermost first.
  ///   - strides: in elements; nil is row-major without gaps.
  /// - Throws: `AttentionError` with code `.invalidArgument` where a size is negative, the ranks
  ///   differ, or an element would lie outside `elements`.
  @_lifetime(copy elements)
  public init<Element: TensorElement>(
    _ elements: consuming MutableSpan<Element>,
    shape: [Int],
    strides: [Int]? = nil
  ) throws(AttentionError) {
    let checked = try TensorView(elements.span, shape: shape, strides: strides)
    let start = unsafe UnsafeMutableRawPointer(mutating: checked.base)
    let type = checked.elementType
    let layout = checked.strides
    let view = unsafe MutableTensorView(
      unsafeBase: start,
      elementType: type,
      shape: shape,
      strides: layout
    )
    self = unsafe _overrideLifetime(view, copying: elements)
  }

  /// The same elements to read, for as long as nothing is written.
  public var view: TensorView {
    @_lifetime(borrow self)
    get {
      unsafe _overrideLifetime(
        TensorView(
          unsafeBase: UnsafeRawPointer(base),
          elementType: elementType,
          shape: shape,
          strides: strides
        ),
        borrowing: self
      )
    }
  }

  /// A range of one dimension, in place of this view.
  ///
  /// - Precondition: the dimension exists and has the range.
  @_lifetime(copy self)
  package consuming func part(_ range: Range<Int>, ofDimension axis: Int) -> MutableTensorView {
    let part = TensorGeometry.part(range, ofDimension: axis, shape, strides)
    return unsafe _overrideLifetime(
      MutableTensorView(
        unsafeBase: base + part.offset * elementType.bitWidth / 8,
        elementType: elementType,
        shape: part.shape,
        strides: strides
      ),
      copying: self
    )
  }

  /// Writes `value`, rounded to the element type, `offset` elements after the first.
  ///
  /// Integers saturate.
  package func store(_ value: Float, atOffset offset: Int) {
    switch elementType {
    case .float32: unsafe base.storeBytes(of: value, toByteOffset: 4 * offset, as: Float.self)
    case .float16:
      unsafe base.storeBytes(of: Half.bits(value), toByteOffset: 2 * offset, as: UInt16.self)
    case .bfloat16:
      unsafe base.storeBytes(
        of: BFloat16(value).bitPattern,
        toByteOffset: 2 * offset,
        as: UInt16.self
      )
    case .float8:
      unsafe base.storeBytes(of: Float8(value).bitPattern, toByteOffset: offset, as: UInt8.self)
    case .int8:
      let code = Int8(min(max(value.rounded(.toNearestOrEven), -128), 127))
      unsafe base.storeBytes(of: code, toByteOffset: offset, as: Int8.self)
    case .int4:
      let code = Int8(min(max(value.rounded(.toNearestOrEven), -8), 7))
      let old = unsafe base.load(fromByteOffset: offset >> 1, as: UInt8.self)
      let halves = Int4.unpack(old)
      let byte = offset & 1 == 0 ? Int4.pack(code, halves.high) : Int4.pack(halves.low, code)
      unsafe base.storeBytes(of: byte, toByteOffset: offset >> 1, as: UInt8.self)
    }
  }
}
