internal import CAttentionKernels

/// Where a packed unit of 64 tokens has each element: what its kernel's packing does, as a table.
///
/// Kernels pack whole units; a cache gets tokens one at a time. The table is found by packing units of
/// known numbers, so it needs no knowledge of any layout, and it is checked against the kernel.
struct CPUUnitPlaces: Sendable {
  /// [token][channel], in elements.
  let places: [Int32]
  /// Bytes per element.
  let size: Int
  /// Bits that codes have inverted in the unit.
  let flip: UInt8
  let dimension: Int
  let byteCount: Int
  /// A unit of zeros.
  let empty: [UInt8]

  /// - Parameters:
  ///   - dimension: channels.
  ///   - byteCount: bytes of a unit.
  ///   - size: bytes per element of the unit.
  ///   - pack: packs small integers 0…127, given as [64][dimension].
  ///   - decode: the number at an element of a unit, without regard to inverted bits.
  init(
    dimension: Int,
    byteCount: Int,
    size: Int,
    pack: (_ numbers: [Int8], _ unit: UnsafeMutableRawPointer) -> Void,
    decode: (UInt32) -> UInt32
  ) {
    let count = KVCacheLayout.unitLength * dimension
    func packed(_ number: (Int) -> Int) -> [UInt8] {
      let numbers = (0..<count).map { Int8(number($0)) }
      // Kernels store whole cache lines at aligned places.
      var layout = CPUMemory.Layout()
      let unit = layout.take(byteCount)
      let memory = CPUMemory.required(layout, zeroed: true)
      let bytes = unsafe memory.place(unit, as: UInt8.self)
      unsafe pack(numbers, UnsafeMutableRawPointer(bytes))
      return (0..<byteCount).map { unsafe bytes[$0] }
    }
    func elements(_ bytes: [UInt8]) -> [UInt32] {
      stride(from: 0, to: bytes.count, by: size).map { start in
        (0..<size).reduce(0) { $0 | UInt32(bytes[start + $1]) << (8 * UInt32($1)) }
      }
    }
    let empty = packed { _ in 0 }
    let (zeros, ones) = (elements(empty), elements(packed { _ in 1 }))
    let (low, high) = (elements(packed { $0 & 127 }), elements(packed { $0 >> 7 }))
    var places = [Int32](repeating: -1, count: count)
    var flip: UInt32 = 0
    for place in zeros.indices where ones[place] != zeros[place] {
      if size == 1 { flip = zeros[place] }
      let index = decode(low[place] ^ flip) + decode(high[place] ^ flip) << 7
      places[Int(index)] = Int32(place)
    }
    precondition(!places.contains(-1), "every element has a place in its unit")
    self.places = places
    self.size = size
    self.flip = UInt8(flip)
    self.dimension = dimension
    self.byteCount = byteCount
    self.empty = empty
  }

  /// Rows [count][dimension] into a unit from token `token` on.
  func scatter(_ rows: UnsafeRawPointer, token: Int, count: Int, into unit: UnsafeMutableRawPointer)
  {
    unsafe places.withUnsafeBufferPointer { places in
      var part = unsafe part(places, token: token, count: count)
      unsafe intfa_scatter(&part, rows, unit)
    }
  }

  /// Rows [count][dimension] out of a unit.
  func gather(_ unit: UnsafeRawPointer, token: Int, count: Int, into rows: UnsafeMutableRawPointer)
  {
    unsafe places.withUnsafeBufferPointer { places in
      var part = unsafe part(places, token: token, count: count)
      unsafe intfa_gather(&part, unit, rows)
    }
  }

  /// A unit without tokens: what padding holds, and no number that a kernel could trip over.
  func clear(_ unit: UnsafeMutableRawPointer) {
    unsafe empty.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return }
      unsafe unit.copyMemory(from: base, byteCount: byteCount)
    }
  }

  private func part(
    _ places: UnsafeBufferPointer<Int32>,
    token: Int,
    count: Int
  ) -> intfa_unit_part {
    unsafe intfa_unit_part(
      places: places.baseAddress,
      size: Int32(size),
      token: Int32(token),
      count: Int32(count),
      dimension: Int32(dimension),
      flip: flip
    )
  }
}
